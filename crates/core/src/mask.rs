//! Which entries of a tensor train.

use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::array::{Array, Element, Lease};
use crate::meter::Category;

/// Places in a row-major tensor, ascending and without repetition: what of it trains.
///
/// An optimizer is given the trainable entries alone, as a vector of their own,
/// so that decay and moments never touch the rest.
#[derive(Clone)]
pub struct Mask {
    places: Vec<u32>,
    _lease: Arc<Lease>,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} entries)", self.places.len())
    }
}

impl PartialEq for Mask {
    fn eq(&self, other: &Self) -> bool {
        self.places == other.places
    }
}

impl Mask {
    /// Entries by their place in the flattened tensor, in any order; each counts once.
    pub fn entries(mut places: Vec<u32>) -> Self {
        places.sort_unstable();
        places.dedup();
        places.shrink_to_fit();
        let lease = Lease::new(Category::Trainable, 4 * places.len() as u64);
        Mask { places, _lease: lease }
    }

    /// Whole rows of a matrix of this width.
    pub fn rows(rows: &[u32], width: usize) -> Self {
        let width = width as u32;
        Mask::entries(rows.iter().flat_map(|r| r * width..(r + 1) * width).collect())
    }

    /// Whole columns of a matrix of this shape.
    pub fn columns(columns: &[u32], rows: usize, width: usize) -> Self {
        let places = (0..rows).flat_map(|r| columns.iter().map(move |c| (r * width) as u32 + c));
        Mask::entries(places.collect())
    }

    /// The places, ascending.
    pub fn places(&self) -> &[u32] {
        &self.places
    }

    /// How many entries train.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Where each of this mask's entries stood in another's vector; `None` where it was not in it.
    ///
    /// For carrying optimizer state along when the choice changes.
    pub fn places_in(&self, other: &Mask) -> Vec<Option<usize>> {
        self.places.iter().map(|p| other.places.binary_search(p).ok()).collect()
    }

    /// The masked entries as a vector `[len]`.
    ///
    /// # Errors
    /// If a place lies outside the tensor.
    pub fn gather<T: Element>(&self, from: &Array, category: Category) -> Result<Array> {
        self.check(from)?;
        Array::build::<T>(&[self.len()], from.is_shape_only(), category, |out| {
            let from = from.view::<T>()?;
            for (o, p) in out.iter_mut().zip(&self.places) {
                *o = from[*p as usize];
            }
            Ok(())
        })
    }

    /// Writes a vector `[len]` into the masked entries; the others keep their bits.
    ///
    /// # Errors
    /// If the sizes do not fit.
    pub fn scatter<T: Element>(&self, part: &Array, into: &Array) -> Result<()> {
        self.check(into)?;
        ensure!(part.len() == self.len(), "{} numbers for {} places", part.len(), self.len());
        if into.is_shape_only() {
            return Ok(());
        }
        let part = part.view::<T>()?;
        into.update(|into: &mut [T]| {
            for (x, p) in part.iter().zip(&self.places) {
                into[*p as usize] = *x;
            }
        })
    }

    fn check(&self, array: &Array) -> Result<()> {
        let last = self.places.last().map_or(0, |p| *p as usize + 1);
        ensure!(last <= array.len(), "place {} of a tensor {:?}", last.max(1) - 1, array.dims());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_and_scatter_are_inverse() {
        let x = Array::from_vec((0..12).map(|i| i as f32).collect(), &[3, 4], Category::Workspace).unwrap();
        let mask = Mask::columns(&[1, 3], 3, 4);
        let part = mask.gather::<f32>(&x, Category::Workspace).unwrap();
        assert_eq!(&*part.view::<f32>().unwrap(), &[1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
        part.update(|p: &mut [f32]| p.fill(-1.0)).unwrap();
        mask.scatter::<f32>(&part, &x).unwrap();
        let after = x.to_f32().unwrap();
        assert_eq!(after, [0.0, -1.0, 2.0, -1.0, 4.0, -1.0, 6.0, -1.0, 8.0, -1.0, 10.0, -1.0]);
        assert_eq!(Mask::rows(&[2], 4).places(), [8, 9, 10, 11]);
        assert_eq!(
            Mask::rows(&[2, 0], 4).places_in(&mask),
            [None, Some(0), None, Some(1), None, Some(4), None, Some(5)]
        );
        assert!(Mask::entries(vec![12]).gather::<f32>(&x, Category::Workspace).is_err());
    }
}
