//! A block's tensors as bytes on the host, and the room that they have on the device.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, DType, Lease};
use ramekin_kernels::narrow::{Narrow, Rounding};

use crate::shelf::Parcel;

/// One tensor of a block.
#[derive(Clone)]
pub struct Piece {
    /// Its name, by which rounding is drawn.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Its type on the device; `None` for the bytes of a packed weight.
    pub dtype: Option<DType>,
    /// The type on the host where that is another.
    pub narrow: Option<Narrow>,
    /// Bytes on the host.
    pub bytes: usize,
    /// A plan's.
    pub shape_only: bool,
}

impl Piece {
    /// A dense tensor, f32 held as `narrow` where that is wanted.
    pub fn dense(name: &str, value: &Array, narrow: Option<Narrow>) -> Self {
        let narrow = narrow.filter(|_| value.dtype() == DType::F32);
        let bytes = narrow.map_or(value.bytes() as usize, |n| n.bytes() * value.len());
        let (dims, dtype) = (value.dims().to_vec(), Some(value.dtype()));
        Piece { name: name.to_owned(), dims, dtype, narrow, bytes, shape_only: value.is_shape_only() }
    }

    /// A packed weight's bytes.
    pub fn packed(name: &str, bytes: usize, shape_only: bool) -> Self {
        Piece { name: name.to_owned(), dims: Vec::new(), dtype: None, narrow: None, bytes, shape_only }
    }

    /// The bytes that a tensor is held as.
    pub fn pack(&self, value: &Array, rounding: Rounding) -> Result<Vec<u8>> {
        let Some(narrow) = self.narrow else { return value.to_bytes() };
        let mut out = vec![0; self.bytes];
        narrow.pack(&value.view::<f32>()?, rounding, &mut out);
        Ok(out)
    }

    fn unpack(&self, bytes: &[u8], room: &mut Room) -> Result<()> {
        match (room, self.narrow) {
            (Room::Dense(array), None) => array.fill_bytes(bytes),
            (Room::Dense(array), Some(narrow)) => array.update(|x: &mut [f32]| narrow.unpack(bytes, x)),
            (Room::Packed { bytes: room, .. }, _) => {
                room.clear();
                room.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Share of numbers whose codes are the same before and after.
    pub fn same(&self, before: &[u8], after: &[u8]) -> (usize, usize) {
        let Some(narrow) = self.narrow else { return (0, 0) };
        let (a, b) = (before.chunks(narrow.bytes()), after.chunks(narrow.bytes()));
        (a.zip(b).filter(|(a, b)| a == b).count(), self.bytes / narrow.bytes())
    }
}

/// Pieces that move as one copy.
#[derive(Clone)]
pub struct Group {
    /// Which of the block's.
    pub pieces: Range<usize>,
    /// Where they wait.
    pub parcel: Parcel,
}

/// Room on the device for one tensor.
pub enum Room {
    /// A parameter's numbers.
    Dense(Array),
    /// A packed weight's bytes; a lease counts them until the weight itself does.
    Packed {
        /// The bytes.
        bytes: Vec<u8>,
        /// Their hold on the meter.
        lease: Option<Arc<Lease>>,
    },
}

/// Room on the device for a block, made once and used for one block after the other.
pub struct Buffer(pub Vec<Room>);

impl Buffer {
    /// Room for these pieces.
    pub fn new(pieces: &[Piece]) -> Result<Self> {
        let room = |p: &Piece| {
            Ok(match p.dtype {
                Some(dtype) if p.shape_only => {
                    Room::Dense(Array::shape_only(&p.dims, dtype, Category::Weights)?)
                }
                Some(dtype) => Room::Dense(Array::zeros(&p.dims, dtype, Category::Weights)?),
                None => {
                    let lease = Some(Lease::new(Category::Weights, p.bytes as u64));
                    Room::Packed { bytes: Vec::new(), lease }
                }
            })
        };
        pieces.iter().map(room).collect::<Result<_>>().map(Buffer)
    }

    /// Whether these pieces fit, and nobody still looks at what was here before.
    fn fits(&self, pieces: &[Piece]) -> bool {
        let fits = |(room, piece): (&Room, &Piece)| match room {
            Room::Dense(a) => Some(a.dtype()) == piece.dtype && a.dims() == piece.dims && a.is_unique(),
            Room::Packed { .. } => piece.dtype.is_none(),
        };
        self.0.len() == pieces.len() && self.0.iter().zip(pieces).all(fits)
    }

    /// The same room, or other room where the pieces do not fit.
    pub fn fitted(self, pieces: &[Piece]) -> Result<Self> {
        if !self.fits(pieces) {
            drop(self);
            return Buffer::new(pieces);
        }
        let mut buffer = self;
        for (room, piece) in buffer.0.iter_mut().zip(pieces) {
            if let Room::Packed { lease: lease @ None, .. } = room {
                *lease = Some(Lease::new(Category::Weights, piece.bytes as u64));
            }
        }
        Ok(buffer)
    }

    /// Takes a group's bytes in.
    pub fn fill(&mut self, pieces: &[Piece], group: &Group, bytes: &[u8]) -> Result<()> {
        let mut from = 0;
        for i in group.pieces.clone().filter(|i| !pieces[*i].shape_only) {
            pieces[i].unpack(&bytes[from..from + pieces[i].bytes], &mut self.0[i])?;
            from += pieces[i].bytes;
        }
        Ok(())
    }
}
