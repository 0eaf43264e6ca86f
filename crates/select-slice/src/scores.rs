//! Scores of heads and channels: from weights, from what a look at rows shows, from gradients.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category, DType, Param};
use ramekin_slots::{Below, Forward, LinearAdapter, LinearSite, ModelFacts, Probe, Sites};
use ramekin_tape::{GradStore, Value};

use crate::order::expand;
use crate::settings::{S2ftSettings, Score};
use crate::site::{AtSite, Side, Slice};
use crate::units::{LayerPaths, Matrix, Scores};

/// Σ of squares of each row and of each column of a linear's weight.
fn squares(sites: &Sites, path: &str) -> Result<(Vec<f64>, Vec<f64>)> {
    let weight = sites.linear(path)?.dense(sites, false)?;
    let (height, width) = weight.rows();
    let w = weight.view::<f32>()?;
    let (mut rows, mut columns) = (vec![0.0; height], vec![0.0; width]);
    for (r, row) in w.chunks(width).enumerate() {
        for (c, x) in row.iter().enumerate() {
            let square = f64::from(*x).powi(2);
            rows[r] += square;
            columns[c] += square;
        }
    }
    Ok((rows, columns))
}

/// Sums over units of `size` successive entries.
fn by_unit(values: &[f64], size: usize) -> Vec<f64> {
    values.chunks(size).map(|c| c.iter().sum()).collect()
}

fn rooted(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(f64::sqrt).collect()
}

fn for_both(heads: Vec<Vec<f64>>, channels: Vec<Vec<f64>>) -> Scores {
    Scores::from([
        (Matrix::V, heads.clone()),
        (Matrix::O, heads),
        (Matrix::Up, channels.clone()),
        (Matrix::Down, channels),
    ])
}

/// Norms of the units' coupled weights.
pub fn weights(sites: &Sites, layers: &[LayerPaths], facts: &ModelFacts) -> Result<Scores> {
    let group = facts.heads / facts.kv_heads * facts.head_dim;
    let (mut heads, mut channels) = (Vec::new(), Vec::new());
    for layer in layers {
        let parts = [
            by_unit(&squares(sites, &layer.q)?.0, group),
            by_unit(&squares(sites, &layer.k)?.0, facts.head_dim),
            by_unit(&squares(sites, &layer.v)?.0, facts.head_dim),
            by_unit(&squares(sites, &layer.o)?.1, group),
        ];
        heads.push(rooted((0..facts.kv_heads).map(|u| parts.iter().map(|p| p[u]).sum()).collect()));
        let mut sums = squares(sites, &layer.up)?.0;
        let mut add = |more: Vec<f64>| sums.iter_mut().zip(more).for_each(|(s, m)| *s += m);
        if let Some(gate) = &layer.gate {
            add(squares(sites, gate)?.0);
        }
        add(squares(sites, &layer.down)?.1);
        channels.push(rooted(sums));
    }
    Ok(for_both(heads, channels))
}

/// What goes into a linear, channel by channel.
#[derive(Default)]
struct Seen {
    absolute: Vec<f64>,
    squares: Vec<f64>,
    tokens: f64,
}

/// Watches a linear's input and changes nothing.
struct Watch(Rc<RefCell<Seen>>);

impl LinearAdapter for Watch {
    fn forward(&self, _: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        if x.array().is_shape_only() {
            return below(x);
        }
        let mut seen = self.0.borrow_mut();
        seen.absolute.resize(site.shape.1, 0.0);
        seen.squares.resize(site.shape.1, 0.0);
        for row in x.array().view::<f32>()?.chunks(site.shape.1) {
            seen.tokens += 1.0;
            for (c, x) in row.iter().enumerate() {
                seen.absolute[c] += f64::from(x.abs());
                seen.squares[c] += f64::from(*x).powi(2);
            }
        }
        below(x)
    }

    fn fold(&self, _: &Sites, _: &LinearSite, weight: Array) -> Result<Array> {
        Ok(weight)
    }
}

/// Scores from a look at rows; on shapes the look alone is taken.
pub fn looked(
    s: &S2ftSettings,
    sites: &Sites,
    layers: &[LayerPaths],
    facts: &ModelFacts,
    probe: &mut dyn Probe,
) -> Result<Scores> {
    if s.selection == Score::G {
        return gradients(s, sites, layers, facts, probe);
    }
    let paths: Vec<&String> = layers.iter().flat_map(|l| [&l.o, &l.down]).collect();
    let watches: Vec<Rc<RefCell<Seen>>> = paths.iter().map(|_| Rc::default()).collect();
    for (path, watch) in paths.iter().zip(&watches) {
        sites.linear(path)?.attach(Box::new(Watch(watch.clone())));
    }
    let mut looks = (0..s.calibration_batches).map(|i| probe.loss("s2ft", i, s.calibration_rows));
    let done: Result<Vec<f64>> = looks.by_ref().collect();
    for path in &paths {
        sites.linear(path)?.detach_last();
    }
    done?;
    let group = facts.heads / facts.kv_heads * facts.head_dim;
    let norms = if s.selection == Score::S { Some(weights(sites, layers, facts)?) } else { None };
    let (mut heads, mut channels) = (Vec::new(), Vec::new());
    for (i, watch) in watches.iter().enumerate() {
        let seen = watch.borrow();
        let (layer, is_head) = (i / 2, i % 2 == 0);
        let size = if is_head { group } else { 1 };
        let matrix = if is_head { Matrix::O } else { Matrix::Down };
        let score = match &norms {
            None => {
                let mean = by_unit(&seen.absolute, size);
                mean.into_iter().map(|sum| sum / (size as f64 * seen.tokens)).collect()
            }
            Some(norms) => {
                let activations = rooted(by_unit(&seen.squares, size));
                activations.iter().zip(&norms[&matrix][layer]).map(|(a, w)| a * w).collect()
            }
        };
        if is_head { heads.push(score) } else { channels.push(score) }
    }
    Ok(for_both(heads, channels))
}

/// Norms of the gradient of each unit's rows or columns, of the matrices that would train.
fn gradients(
    s: &S2ftSettings,
    sites: &Sites,
    layers: &[LayerPaths],
    facts: &ModelFacts,
    probe: &mut dyn Probe,
) -> Result<Scores> {
    // Whole matrices as slices of themselves: they get gradients, and the base's stay frozen.
    let mut whole = Vec::new();
    for ((matrix, _), (_, ratio)) in Matrix::ALL.into_iter().zip(s.ratios()) {
        for layer in layers.iter().filter(|_| ratio > 0.0) {
            let site = sites.linear(matrix.path(layer))?;
            let rows = matches!(matrix, Matrix::V | Matrix::Up);
            let (units, size) = matrix.units(sites, layer, facts)?;
            let all: Vec<u32> = (0..units as u32).collect();
            let places = Rc::new(expand(&all, size));
            let (o, i) = site.shape;
            let param =
                Param::new(site.path.clone(), Array::shape_only(&[o, i], DType::F32, Category::Workspace)?);
            param.set_trainable(true);
            let slice = Slice {
                path: site.path.clone(),
                side: if rows { Side::Rows } else { Side::Columns },
                param: param.clone(),
                idx: RefCell::new(places.clone()),
                original: places,
                inside: true,
            };
            site.attach(Box::new(AtSite(Rc::new(slice))));
            whole.push((matrix, size, param));
        }
    }
    let mut store = GradStore::new();
    let mut looks =
        (0..s.calibration_batches).map(|i| probe.backward("s2ft", i, s.calibration_rows, &mut store));
    let done: Result<Vec<f64>> = looks.by_ref().collect();
    for (_, _, param) in &whole {
        sites.linear(param.name())?.detach_last();
    }
    done?;
    let mut scores = Scores::new();
    for (matrix, size, param) in whole {
        let score = match store.get(param.id()) {
            Some(grad) if !grad.is_shape_only() => {
                unit_norms(grad, size, matches!(matrix, Matrix::V | Matrix::Up))?
            }
            _ => Vec::new(),
        };
        scores.entry(matrix).or_default().push(score);
    }
    for (matrix, _) in Matrix::ALL {
        // A matrix with ratio 0 is asked for no unit.
        let none = || {
            let count = |l: &LayerPaths| Ok(vec![0.0; matrix.units(sites, l, facts)?.0]);
            layers.iter().map(count).collect::<Result<Vec<_>>>()
        };
        if let Entry::Vacant(place) = scores.entry(matrix) {
            place.insert(none()?);
        }
    }
    Ok(scores)
}

fn unit_norms(grad: &Array, size: usize, rows: bool) -> Result<Vec<f64>> {
    let (height, width) = grad.rows();
    let mut sums = vec![0.0; if rows { height } else { width }];
    for (r, row) in grad.view::<f32>()?.chunks(width).enumerate() {
        for (c, x) in row.iter().enumerate() {
            sums[if rows { r } else { c }] += f64::from(*x).powi(2);
        }
    }
    Ok(rooted(by_unit(&sums, size)))
}
