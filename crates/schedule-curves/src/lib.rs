//! Learning-rate schedules with warm-up: constant, linear, cosine and wsd.
