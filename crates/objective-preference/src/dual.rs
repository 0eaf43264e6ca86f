//! Numbers with their slopes by two variables: the log-probabilities of a pair.

use std::ops::{Add, Mul, Neg, Sub};

/// A value and its slopes by the chosen and the rejected answer's log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual {
    /// The value.
    pub value: f64,
    /// The slopes.
    pub slopes: [f64; 2],
}

impl Dual {
    /// Without slopes.
    pub fn constant(value: f64) -> Self {
        Dual { value, slopes: [0.0; 2] }
    }

    /// Variable number `i`.
    pub fn variable(value: f64, i: usize) -> Self {
        let mut slopes = [0.0; 2];
        slopes[i] = 1.0;
        Dual { value, slopes }
    }

    fn map(self, value: f64, slope: f64) -> Self {
        Dual { value, slopes: self.slopes.map(|s| s * slope) }
    }

    /// log σ(x).
    pub fn log_sigmoid(self) -> Self {
        let value = self.value.min(0.0) - (-self.value.abs()).exp().ln_1p();
        self.map(value, 1.0 - value.exp())
    }

    /// σ(x).
    pub fn sigmoid(self) -> Self {
        self.log_sigmoid().exp()
    }

    /// eˣ.
    pub fn exp(self) -> Self {
        self.map(self.value.exp(), self.value.exp())
    }

    /// x².
    pub fn square(self) -> Self {
        self.map(self.value * self.value, 2.0 * self.value)
    }

    /// max(0, x).
    pub fn hinge(self) -> Self {
        if self.value > 0.0 { self } else { Dual::constant(0.0) }
    }
}

impl Add for Dual {
    type Output = Dual;

    fn add(self, o: Dual) -> Dual {
        let [a, b] = self.slopes;
        Dual { value: self.value + o.value, slopes: [a + o.slopes[0], b + o.slopes[1]] }
    }
}

impl Neg for Dual {
    type Output = Dual;

    fn neg(self) -> Dual {
        self.map(-self.value, -1.0)
    }
}

impl Sub for Dual {
    type Output = Dual;

    fn sub(self, o: Dual) -> Dual {
        self + -o
    }
}

impl Mul for Dual {
    type Output = Dual;

    fn mul(self, o: Dual) -> Dual {
        let (left, right) = (self.map(self.value * o.value, o.value), o.map(0.0, self.value));
        left + right
    }
}

impl Add<f64> for Dual {
    type Output = Dual;

    fn add(self, x: f64) -> Dual {
        Dual { value: self.value + x, ..self }
    }
}

impl Sub<f64> for Dual {
    type Output = Dual;

    fn sub(self, x: f64) -> Dual {
        self + -x
    }
}

impl Mul<f64> for Dual {
    type Output = Dual;

    fn mul(self, x: f64) -> Dual {
        self.map(self.value * x, x)
    }
}
