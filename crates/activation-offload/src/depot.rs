//! Tensors away from the device: put once however often they are saved, fetched once for all their uses.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Weak as ArcWeak};

use anyhow::{Context, Result};
use ramekin_core::meter::{self, Meter};
use ramekin_core::{Array, Category, DType, Lease, Tier};
use ramekin_store::{Spool, Ticket};

/// Where the bytes are.
enum Place {
    /// A plan counts and holds nothing.
    Nowhere,
    Host(Vec<u8>),
    Disk(Ticket),
}

/// One tensor that is away.
pub struct Parcel {
    depot: Rc<Depot>,
    original: ArcWeak<Lease>,
    dims: Vec<usize>,
    dtype: DType,
    bytes: u64,
    place: RefCell<Place>,
    here: RefCell<Option<Array>>,
    uses: Cell<usize>,
    number: usize,
    meter: Arc<Meter>,
}

/// The place that tensors go to.
pub struct Depot {
    tier: Tier,
    spool: Option<Spool>,
    prefetch: usize,
    /// What is away, by the identity of its bytes.
    known: RefCell<HashMap<*const Lease, Weak<Parcel>>>,
    /// In the order of going: backward asks for it from the end.
    order: RefCell<Vec<Weak<Parcel>>>,
}

/// Bytes that may wait to be written to disk.
const BUFFER: usize = 64 << 20;

impl Depot {
    /// Host memory.
    pub fn host() -> Self {
        Depot {
            tier: Tier::Host,
            spool: None,
            prefetch: 0,
            known: RefCell::default(),
            order: RefCell::default(),
        }
    }

    /// A scratch file in `folder`, read `prefetch` tensors ahead; `bandwidth` as in [`Spool::new`].
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn disk(folder: &Path, prefetch: usize, bandwidth: Option<f64>) -> Result<Self> {
        let spool = Spool::new(folder, BUFFER, bandwidth)?;
        Ok(Depot { tier: Tier::Disk, spool: Some(spool), prefetch, ..Depot::host() })
    }

    /// Sends a tensor away, or finds that it has gone already.
    pub fn send(self: &Rc<Self>, array: &Array) -> Result<Rc<Parcel>> {
        let key = Arc::as_ptr(array.lease());
        let known = self.known.borrow().get(&key).and_then(Weak::upgrade);
        // The address may be another tensor's by now, unless the first one is still alive.
        if let Some(parcel) = known.filter(|p| p.original.upgrade().is_some_and(|l| Arc::as_ptr(&l) == key)) {
            parcel.uses.set(parcel.uses.get() + 1);
            return Ok(parcel);
        }
        let place = if array.is_shape_only() {
            Place::Nowhere
        } else {
            match &self.spool {
                None => Place::Host(array.to_bytes()?),
                Some(spool) => Place::Disk(spool.put(array.to_bytes()?)?),
            }
        };
        let meter = meter::current();
        meter.send(self.tier, array.bytes());
        let mut order = self.order.borrow_mut();
        while order.last().is_some_and(|p| p.strong_count() == 0) {
            order.pop();
        }
        let parcel = Rc::new(Parcel {
            depot: self.clone(),
            original: Arc::downgrade(array.lease()),
            dims: array.dims().to_vec(),
            dtype: array.dtype(),
            bytes: array.bytes(),
            place: RefCell::new(place),
            here: RefCell::default(),
            uses: Cell::new(1),
            number: order.len(),
            meter,
        });
        order.push(Rc::downgrade(&parcel));
        self.known.borrow_mut().insert(key, Rc::downgrade(&parcel));
        Ok(parcel)
    }

    /// Begins to read what backward will ask for after the parcel of this number.
    fn read_ahead(&self, number: usize) {
        let Some(spool) = &self.spool else { return };
        let order = self.order.borrow();
        for parcel in order.iter().take(number).rev().filter_map(Weak::upgrade).take(self.prefetch) {
            if let Place::Disk(ticket) = *parcel.place.borrow() {
                spool.prefetch(ticket);
            }
        }
    }
}

impl Parcel {
    /// The tensor again, in this shape; it stays for as long as other uses are to come.
    pub fn take(&self, dims: &[usize]) -> Result<Array> {
        let left = self.uses.get().checked_sub(1).context("a tensor was asked for too often")?;
        self.uses.set(left);
        let known = self.here.borrow().clone();
        let array = match known {
            Some(array) => array,
            None => self.fetch()?,
        };
        *self.here.borrow_mut() = (left > 0).then(|| array.clone());
        array.reshape(dims)
    }

    fn fetch(&self) -> Result<Array> {
        self.meter.fetch(self.depot.tier, self.bytes);
        self.depot.read_ahead(self.number);
        match &*self.place.borrow() {
            Place::Nowhere => Array::shape_only(&self.dims, self.dtype, Category::Activations),
            Place::Host(bytes) => self.array(bytes),
            Place::Disk(ticket) => {
                let spool = self.depot.spool.as_ref().context("no scratch file")?;
                self.array(&spool.get(*ticket)?)
            }
        }
    }

    fn array(&self, bytes: &[u8]) -> Result<Array> {
        Array::from_bytes(bytes, &self.dims, self.dtype, Category::Activations)
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.meter.discard(self.depot.tier, self.bytes);
        if let (Place::Disk(ticket), Some(spool)) = (&*self.place.borrow(), &self.depot.spool) {
            spool.free(*ticket);
        }
    }
}

/// Whether tensors of this type can go away.
pub fn carries(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64)
}
