//! The slot traits: what a part of each kind must offer.
