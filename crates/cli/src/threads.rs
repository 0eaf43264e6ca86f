//! Threads that kernels run on: how many, and on which processors.
//!
//! | variable | meaning |
//! |---|---|
//! | `RAMEKIN_THREADS=4` | four threads, wherever the system puts them |
//! | `RAMEKIN_THREADS=0-3,8` | five threads, each pinned to one of these processors; Linux |
//! | `RAYON_NUM_THREADS`, `OMP_NUM_THREADS` | as many threads, where `RAMEKIN_THREADS` is absent |
//!
//! Without any of them there are as many threads as processors that this process may use. Nothing is pinned unasked: of
//! two runs beside each other both would sit on the same processors.

use anyhow::Result;
use ramekin_core::UserError;

const VARIABLE: &str = "RAMEKIN_THREADS";

/// What a user may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Threads {
    Number(usize),
    Processors(Vec<usize>),
}

impl Threads {
    fn number(&self) -> usize {
        match self {
            Threads::Number(n) => *n,
            Threads::Processors(list) => list.len(),
        }
    }
}

/// Starts the threads that kernels run on.
///
/// # Errors
/// If `RAMEKIN_THREADS` is neither a number nor a list of processors, or names one that this process may not use.
pub fn start() -> Result<()> {
    let threads = asked()?;
    let n = threads.number();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n);
    // This thread works too, so that a product need not wait for another to wake up. A pool of one stays apart: while
    // this thread waits for a rank or a reader, somebody has to do their work.
    let pool = if n > 1 { pool.use_current_thread() } else { pool };
    let pin = match threads {
        Threads::Number(_) => Vec::new(),
        Threads::Processors(list) => {
            // Whatever else runs, readers of data and of weights, stays on the list, on any of it.
            pinning::to(&list).map_err(|why| refused(&names(&list), &why))?;
            list
        }
    };
    let settle = move |i: usize| {
        if let Some(processor) = pin.get(i) {
            // The list as a whole was accepted, so each of it is.
            let _ = pinning::to(&[*processor]);
        }
    };
    // Fails only if a pool exists already, which is too early for one.
    let _ = pool.start_handler(settle.clone()).build_global();
    ramekin_kernels::team::start(n, settle);
    Ok(())
}

fn asked() -> Result<Threads> {
    if let Some(text) = std::env::var_os(VARIABLE) {
        let text = text.to_string_lossy();
        return parse(&text)
            .ok_or_else(|| refused(&text, "it is no number above 0 and no list of processors"));
    }
    let number = |name: &str| std::env::var(name).ok()?.parse().ok().filter(|n| *n > 0);
    let found = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"].into_iter().find_map(number);
    let here = || std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Threads::Number(found.unwrap_or_else(here)))
}

/// `4`, or `0-3,8`: in the order given, each once.
fn parse(text: &str) -> Option<Threads> {
    let text = text.trim();
    if !text.contains(['-', ',']) {
        return text.parse().ok().filter(|n| *n > 0).map(Threads::Number);
    }
    let mut list: Vec<usize> = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // No machine has so many, and a slip of the finger should not make a list of all numbers.
        if first > last || last > 1 << 16 {
            return None;
        }
        list.extend(first..=last);
    }
    let mut once = list.clone();
    once.sort_unstable();
    once.dedup();
    (once.len() == list.len()).then_some(Threads::Processors(list))
}

fn names(list: &[usize]) -> String {
    list.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn refused(text: &str, why: &str) -> anyhow::Error {
    UserError::new(format!("`{VARIABLE}` cannot be `{text}`: {why}"))
        .help("`4` is four threads, `0-3` or `0,2` threads that are each pinned to one of these processors")
        .into()
}

#[cfg(target_os = "linux")]
mod pinning {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Keeps the calling thread, and those it starts from now on, on these processors.
    pub fn to(processors: &[usize]) -> Result<(), String> {
        let allowed = sched_getaffinity(None).map_err(|e| e.to_string())?;
        let mut set = CpuSet::new();
        for processor in processors {
            if *processor >= CpuSet::MAX_CPU || !allowed.is_set(*processor) {
                let may: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|p| allowed.is_set(*p)).collect();
                let may = super::names(&may);
                return Err(format!("this process may not use processor {processor}, only {may}"));
            }
            set.set(*processor);
        }
        sched_setaffinity(None, &set).map_err(|e| e.to_string())
    }
}

#[cfg(not(target_os = "linux"))]
mod pinning {
    pub fn to(_: &[usize]) -> Result<(), String> {
        Err("threads are pinned on Linux alone".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_a_list() {
        let list = |of: &[usize]| Some(Threads::Processors(of.to_vec()));
        assert_eq!(parse("4"), Some(Threads::Number(4)));
        assert_eq!(parse("0-2, 8"), list(&[0, 1, 2, 8]));
        assert_eq!(parse("3,1"), list(&[3, 1]));
        assert_eq!(parse("5-5"), list(&[5]));
        for wrong in ["", "0", "-1", "four", "3-1", "1,1", "0-2,2", "1,", "0-99999999", "1.5"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_stay_where_they_are_put() {
        use rustix::thread::sched_getaffinity;
        std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            let first = (0..).find(|p| allowed.is_set(*p)).unwrap();
            pinning::to(&[first]).unwrap();
            let now = sched_getaffinity(None).unwrap();
            assert!(now.is_set(first) && now.count() == 1);
            assert!(pinning::to(&[1 << 15]).unwrap_err().contains("may not use processor 32768"));
        })
        .join()
        .unwrap();
    }
}
