//! Where the threads meet: everybody leaves one thing and takes along what all have left.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ramekin_slots::RankFailed;

/// A meeting place of a fixed number of ranks.
pub struct Hub<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    /// What has been left in the meeting that is on.
    left: Vec<Option<T>>,
    /// Meetings that have ended.
    ended: u64,
    /// What was left in the last one that ended, until the next one ends.
    last: Arc<Vec<T>>,
    failed: Option<String>,
}

impl<T> Hub<T> {
    /// For this many ranks.
    pub fn new(ranks: usize) -> Arc<Self> {
        let left = (0..ranks).map(|_| None).collect();
        let state = State { left, ended: 0, last: Arc::new(Vec::new()), failed: None };
        Arc::new(Hub { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves `own` and waits for the others; all that was left, by rank.
    ///
    /// # Errors
    /// If a rank has failed or left.
    pub fn meet(&self, rank: usize, own: T) -> Result<Arc<Vec<T>>, RankFailed> {
        let mut s = self.state();
        if let Some(why) = &s.failed {
            return Err(RankFailed(why.clone()));
        }
        s.left[rank] = Some(own);
        if s.left.iter().all(Option::is_some) {
            s.last = Arc::new(s.left.iter_mut().filter_map(Option::take).collect());
            s.ended += 1;
            self.changed.notify_all();
            return Ok(s.last.clone());
        }
        // Nobody can end the next meeting before this rank has been to it, so `last` stays until then.
        let mine = s.ended;
        while s.ended == mine && s.failed.is_none() {
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        match &s.failed {
            Some(why) if s.ended == mine => Err(RankFailed(why.clone())),
            _ => Ok(s.last.clone()),
        }
    }

    /// Ends every meeting from now on; the first reason counts.
    pub fn fail(&self, why: String) {
        let mut s = self.state();
        s.failed.get_or_insert(why);
        s.left.iter_mut().for_each(|own| *own = None);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_everything_in_order() {
        let hub = Hub::new(3);
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let hub = hub.clone();
                scope.spawn(move || {
                    for round in 0..200 {
                        let all = hub.meet(rank, (rank, round)).expect("all come");
                        assert_eq!(*all, [(0, round), (1, round), (2, round)]);
                    }
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_one_that_failed() {
        let hub = Hub::new(2);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| hub.meet(0, ()).expect_err("rank 1 never comes").0);
            hub.fail("rank 1: no rows".to_owned());
            assert_eq!(waits.join().expect("no panic"), "rank 1: no rows");
        });
        assert!(hub.meet(0, ()).is_err());
    }
}
