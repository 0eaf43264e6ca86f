//! Calibration of an assembled model, for pruning.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_calibrate::{Calibration, InputSquares, Watch};
use ramekin_slots::{BlockStatistics, FlatBatch};

use crate::assembly::Assembly;
use crate::surgery::mlps;

/// What each block does to this many samples, with the norms of its MLP's channels.
///
/// # Errors
/// If a block has no MLP, or numbers are not finite.
pub fn statistics(
    assembly: &Assembly,
    batches: &[FlatBatch],
    samples: usize,
) -> Result<Vec<BlockStatistics>> {
    let mlps = mlps(&*assembly.model)?;
    let squares: Vec<Rc<RefCell<InputSquares>>> = mlps.iter().map(|_| Rc::default()).collect();
    let mut blocks = Vec::new();
    let calibration = Calibration { model: &assembly.model, sites: &assembly.sites, batches };
    calibration.walk(
        &mut |block| Ok(vec![Watch { path: mlps[block].down.clone(), observer: squares[block].clone() }]),
        &mut |seen| {
            let sums = squares[seen.block].borrow();
            let norms = sums.sums.iter().map(|x| (x / samples.max(1) as f64).sqrt()).collect();
            blocks.push(BlockStatistics { moved: seen.moved.means(), norms });
            Ok(false)
        },
    )?;
    Ok(blocks)
}
