//! Threads that share a kernel's tasks and, between two kernels, keep looking for the next one for a while.
//!
//! Decoding is hundreds of kernels a token, each a few microseconds long: threads that sleep between them wake up too
//! late to be of use. A program that owns the machine calls [`start`] once; without it, and where the team is at
//! another caller's work, tasks go to rayon. Which thread takes which task changes no bit, as tasks are cut by shape.
//!
//! A thread looks for 100 microseconds or so, giving way to others now and then, and sleeps after that.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Looks at the board before a thread gives way, and times that it does so before it sleeps.
const LOOKS: (usize, usize) = (64, 100);

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What the members share.
struct Team {
    /// Whether somebody's work is on the board or being put there.
    taken: AtomicBool,
    /// Counts works up: odd while one is open to members, even after it.
    turn: AtomicUsize,
    /// Members that are looking at the board or working; it stays as it is until they are gone.
    inside: AtomicUsize,
    /// The tasks of the open work that are left, a stretch for each member: what lies side by side in memory is
    /// one member's for as long as it keeps up.
    left: Vec<Stretch>,
    /// The open work. Written with nobody inside and `turn` even.
    board: Mutex<Option<Task<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

static TEAM: OnceLock<Team> = OnceLock::new();

thread_local! {
    /// Whether this thread is at a task of the team.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// Starts a team of `threads` with the caller of each kernel as member 0 of them; later calls, and a team of one, do
/// nothing. Every other member first does `settle(i)` on its thread.
pub fn start(threads: usize, settle: impl Fn(usize) + Clone + Send + 'static) {
    if threads < 2 || TEAM.get().is_some() {
        return;
    }
    let team = TEAM.get_or_init(|| Team {
        taken: AtomicBool::new(false),
        turn: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
        left: (0..threads).map(|_| Stretch::default()).collect(),
        board: Mutex::new(None),
        panic: Mutex::new(None),
        asleep: AtomicUsize::new(0),
        bed: Mutex::new(()),
        bell: Condvar::new(),
    });
    for i in 1..threads {
        let member = std::thread::Builder::new().name(format!("kernel-{i}"));
        let settle = settle.clone();
        // A member that cannot start is missed by nobody: its tasks are taken by the others.
        let _ = member.spawn(move || {
            settle(i);
            team.member(i);
        });
    }
}

/// Runs `task(0) … task(n − 1)` on the team; false, and nothing is done, where there is none or it is taken.
pub(crate) fn run(n: usize, task: Task<'_>) -> bool {
    let Some(team) = TEAM.get() else { return false };
    if WORKING.get() {
        (0..n).for_each(task); // a task of a task
        return true;
    }
    // More tasks than half a word counts are nobody's.
    if n >> Stretch::HALF > 0 || team.taken.swap(true, SeqCst) {
        return false;
    }
    team.lead(n, task);
    true
}

impl Team {
    fn lead(&self, n: usize, task: Task<'_>) {
        // SAFETY: the work is off the board, and nobody inside, before this returns.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        *locked(&self.board) = Some(task);
        let members = self.left.len();
        for (i, left) in self.left.iter().enumerate() {
            left.set(i * n / members, (i + 1) * n / members);
        }
        self.turn.fetch_add(1, SeqCst);
        if self.asleep.load(SeqCst) > 0 {
            drop(locked(&self.bed)); // whoever is about to sleep does so, and hears the bell
            self.bell.notify_all();
        }
        self.work(task, 0);
        self.turn.fetch_add(1, SeqCst);
        let mut looks = 0;
        while self.inside.load(SeqCst) > 0 {
            look_again(&mut looks);
        }
        *locked(&self.board) = None;
        let panic = locked(&self.panic).take();
        self.taken.store(false, SeqCst);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Takes tasks until none is left, of its own first. A panic ends the work and is kept for the leader.
    fn work(&self, task: Task<'_>, member: usize) {
        WORKING.set(true);
        let all = || {
            while let Some(i) = self.left[member].first() {
                task(i);
            }
            let others = || self.left.iter().max_by_key(|left| left.len());
            while let Some(left) = others().filter(|left| left.len() > 0) {
                if let Some(i) = left.last() {
                    task(i);
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
            self.left.iter().for_each(|left| left.set(0, 0));
            locked(&self.panic).get_or_insert(panic);
        }
        WORKING.set(false);
    }

    fn member(&self, i: usize) {
        let mut done = 0;
        loop {
            let turn = self.wait(done);
            done = turn;
            self.inside.fetch_add(1, SeqCst);
            // Open still, or open again: whoever closes it waits for those inside.
            if self.turn.load(SeqCst) == turn {
                let work = *locked(&self.board);
                if let Some(task) = work {
                    self.work(task, i);
                }
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for a turn that is open and not `done`.
    fn wait(&self, done: usize) -> usize {
        let open = || Some(self.turn.load(SeqCst)).filter(|t| t % 2 == 1 && *t != done);
        let mut looks = 0;
        while looks < LOOKS.0 * LOOKS.1 {
            if let Some(turn) = open() {
                return turn;
            }
            look_again(&mut looks);
        }
        let mut bed = locked(&self.bed);
        self.asleep.fetch_add(1, SeqCst);
        let turn = loop {
            if let Some(turn) = open() {
                break turn;
            }
            // A bell in the instant before is heard: the ringer has held `bed` in between. The limit is for safety.
            let woken = self.bell.wait_timeout(bed, Duration::from_secs(1));
            bed = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.asleep.fetch_sub(1, SeqCst);
        turn
    }
}

/// Numbers from one up to before another, in the two halves of a word.
#[derive(Default)]
#[repr(align(128))] // a cache line of its own, and the one that is fetched with it
struct Stretch(AtomicUsize);

impl Stretch {
    const HALF: u32 = usize::BITS / 2;

    fn of(word: usize) -> (usize, usize) {
        (word >> Self::HALF, word & ((1 << Self::HALF) - 1))
    }

    fn set(&self, from: usize, to: usize) {
        self.0.store(from << Self::HALF | to, SeqCst);
    }

    fn len(&self) -> usize {
        let (from, to) = Self::of(self.0.load(SeqCst));
        to.saturating_sub(from)
    }

    /// Takes the first number, for its member.
    fn first(&self) -> Option<usize> {
        self.take(|from, to| (from, (from + 1, to)))
    }

    /// Takes the last number, for another.
    fn last(&self) -> Option<usize> {
        self.take(|from, to| (to - 1, (from, to - 1)))
    }

    fn take(&self, cut: impl Fn(usize, usize) -> (usize, (usize, usize))) -> Option<usize> {
        let mut word = self.0.load(SeqCst);
        loop {
            let (from, to) = Self::of(word);
            if from >= to {
                return None;
            }
            let (taken, (from, to)) = cut(from, to);
            match self.0.compare_exchange(word, from << Self::HALF | to, SeqCst, SeqCst) {
                Ok(_) => return Some(taken),
                Err(now) => word = now,
            }
        }
    }
}

fn look_again(looks: &mut usize) {
    *looks += 1;
    if looks.is_multiple_of(LOOKS.0) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_also_after_a_sleep_and_a_panic() {
        start(4, |_| ());
        let round = |n: usize| {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            let inner = AtomicUsize::new(0);
            let task = |i: usize| {
                counts[i].fetch_add(1, SeqCst);
                if i.is_multiple_of(7) {
                    run(3, &|_| {
                        inner.fetch_add(1, SeqCst);
                    });
                }
            };
            // Another test may have the team just now.
            while !run(n, &task) {
                std::thread::yield_now();
            }
            assert!(counts.iter().all(|c| c.load(SeqCst) == 1), "{n} tasks");
            assert_eq!(inner.load(SeqCst), 3 * n.div_ceil(7));
        };
        for n in 0..300 {
            round(n);
            if n % 60 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let failing = |i: usize| assert!(i != 5, "task {i} fails");
        let caught = catch_unwind(AssertUnwindSafe(|| while !run(9, &failing) {}));
        let message = caught.expect_err("a panic comes through");
        assert_eq!(message.downcast_ref::<String>().expect("its message"), "task 5 fails");
        round(40);
    }

    #[test]
    fn callers_beside_each_other_go_to_rayon_or_wait_for_nobody() {
        start(4, |_| ());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..200 {
                        let sum = AtomicUsize::new(0);
                        crate::split::tasks(n, |i| {
                            sum.fetch_add(i, SeqCst);
                        });
                        assert_eq!(sum.load(SeqCst), n * n.saturating_sub(1) / 2);
                    }
                });
            }
        });
    }
}
