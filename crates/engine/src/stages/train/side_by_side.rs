//! The ranks of this process, each in a thread of its own.

use std::thread::{Builder, ScopedJoinHandle};

use anyhow::{Context, Result, anyhow};
use ramekin_slots::{Peer, RankFailed};

use super::rank::{Job, other};
use crate::blueprint::{Blueprint, Loading};
use crate::shared::Shared;
use crate::team::Team;

/// As much as a main thread has.
const STACK: usize = 8 << 20;

/// Runs `own`, which is rank 0, beside the ranks of these ends; they read the frozen weights that are
/// shared, and come to their end before this does.
///
/// # Errors
/// The error of the rank that failed first, with its number; that the others could then not go on is no
/// news.
pub fn side_by_side<T>(
    job: &Job<'_>,
    plan: &Blueprint,
    peers: Vec<Box<dyn Peer + Send>>,
    shared: &Shared,
    team: &Team,
    own: impl FnOnce() -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let _leaving = Leaving(team);
        let mut others = Vec::new();
        for peer in peers {
            let (rank, plan) = (peer.rank(), plan.clone());
            let work = move || {
                ramekin_core::hush();
                let team = Team::with(peer);
                other(job, &plan, team.clone(), Loading::Beside(shared)).inspect_err(|e| team.fail(e))
            };
            let thread = Builder::new().name(format!("rank {rank}")).stack_size(STACK);
            others.push((rank, thread.spawn_scoped(scope, work).context("cannot start another rank")?));
        }
        let own = own().inspect_err(|e| team.fail(e));
        let others: Vec<_> = others.into_iter().map(|(rank, handle)| end(rank, handle)).collect();
        let news = |e: &anyhow::Error| !e.chain().any(|cause| cause.is::<RankFailed>());
        let mut errors: Vec<anyhow::Error> = Vec::new();
        let own = own.map_err(|e| errors.push(e));
        errors.extend(others.into_iter().filter_map(Result::err));
        match (own, errors.iter().position(news)) {
            (Ok(done), _) if errors.is_empty() => Ok(done),
            (_, at) => Err(errors.swap_remove(at.unwrap_or(0))),
        }
    })
}

fn end(rank: usize, handle: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    match handle.join() {
        Ok(done) => done.with_context(|| format!("rank {rank}")),
        Err(_) => Err(anyhow!("rank {rank} has panicked")),
    }
}

/// Whatever ends rank 0, a panic too, the others do not wait for it.
struct Leaving<'a>(&'a Team);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.0.peer() {
            peer.fail("has left");
        }
    }
}
