//! What the figures were measured on.

use std::fs;

use ramekin_kernels::cpu;
use serde::Serialize;

use crate::limits;

/// The machine, and how busy it was.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Instruction sets that matter here.
    pub instruction_sets: Vec<&'static str>,
    /// The widest that Ramekin uses; `RAMEKIN_CPU` limits it.
    pub used: String,
    /// Threads of both sides.
    pub threads: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Reads of all threads together, in GB/s.
    pub read_gb_per_s: f64,
    /// Reads of one thread, in GB/s.
    pub read_one_thread_gb_per_s: f64,
    /// Programs that ran or wanted to, on average over the minute before the benches.
    pub load_before: Option<f64>,
    /// The same at the end; the benches themselves are in it.
    pub load_after: Option<f64>,
    /// The system.
    pub system: String,
}

/// What is looked for among the processor's flags, and how it is called.
const SETS: [(&str, &str); 7] = [
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("avx512f", "AVX-512"),
    ("avx512_vnni", "VNNI"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_bf16", "AMX BF16"),
    ("amx_int8", "AMX INT8"),
];

impl Machine {
    /// Looks around and measures how fast memory is read.
    pub fn here() -> Self {
        let load_before = load();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Machine {
            cpu: field(&info, "model name").unwrap_or(std::env::consts::ARCH).to_owned(),
            instruction_sets: sets(field(&info, "flags").unwrap_or_default()),
            used: format!("{:?}", cpu::found()),
            threads: rayon::current_num_threads(),
            memory: field(&memory, "MemTotal").and_then(kib).unwrap_or(0),
            read_gb_per_s: limits::read(rayon::current_num_threads()),
            read_one_thread_gb_per_s: limits::read(1),
            load_before,
            load_after: None,
            system: std::env::consts::OS.to_owned(),
        }
    }

    /// Notes how busy the machine is at the end.
    pub fn finish(&mut self) {
        self.load_after = load();
    }

    /// In a sentence or two.
    pub fn words(&self) -> String {
        let load = |x: Option<f64>| x.map_or_else(|| "unknown".to_owned(), |x| format!("{x:.1}"));
        let mut words = format!(
            "{}: {} threads of {} with {} (used: {}), {:.0} GB of memory read at {:.1} GB/s by all threads and \
             {:.1} by one. Load before: {}",
            self.system,
            self.threads,
            self.cpu,
            self.instruction_sets.join(", "),
            self.used,
            self.memory as f64 / 1e9,
            self.read_gb_per_s,
            self.read_one_thread_gb_per_s,
            load(self.load_before),
        );
        if self.load_after.is_some() {
            words += &format!(", after: {}", load(self.load_after));
        }
        words + "."
    }
}

/// The value of a line `KEY : VALUE`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
    Some(line.split_once(':')?.1.trim())
}

fn kib(value: &str) -> Option<u64> {
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn sets(flags: &str) -> Vec<&'static str> {
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    SETS.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name).collect()
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_linux_are_read() {
        let info = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512_bf16\n";
        assert_eq!(field(info, "model name"), Some("A CPU"));
        assert_eq!(sets(field(info, "flags").unwrap()), ["AVX2", "AVX-512 BF16"]);
        assert_eq!(field("MemTotal:  1024 kB\n", "MemTotal").and_then(kib), Some(1 << 20));
        assert_eq!(field(info, "bogomips"), None);
    }
}
