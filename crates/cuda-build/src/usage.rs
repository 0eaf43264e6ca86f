//! What the assembler says of each kernel: registers, shared memory, spills.

/// What a kernel takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The kernel's name.
    pub kernel: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of shared memory a block, without what a launch adds.
    pub shared: u32,
    /// Bytes a thread that did not fit into registers.
    pub spilled: u32,
}

/// Reads `ptxas -v`.
pub fn usage(log: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            all.push(Usage { kernel, ..Usage::default() });
        }
        let Some(last) = all.last_mut() else { continue };
        if let Some(n) = number_before(line, " bytes spill stores") {
            last.spilled = n;
        }
        if let Some(n) = number_before(line, " registers") {
            last.registers = n;
            last.shared = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    all.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    all
}

fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = &line[..line.find(words)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assembler_is_understood() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
";
        let a = Usage { kernel: "a".into(), registers: 8, shared: 0, spilled: 0 };
        let b = Usage { kernel: "b".into(), registers: 40, shared: 2048, spilled: 12 };
        assert_eq!(usage(log), [a, b]);
        assert_eq!(usage(""), []);
    }
}
