//! Rotary frequencies with their scaling rules.

use anyhow::Result;
use ramekin_slots::config::wrong;
use serde_json::Value as Json;

/// Base and scaling of the rotary angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    theta: f64,
    scaling: Scaling,
}

#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    Default,
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
}

impl RopeConfig {
    /// Reads `rope_parameters` (new style) or `rope_theta` with `rope_scaling` (old style).
    ///
    /// # Errors
    /// On a scaling rule that is not known: it is never ignored.
    pub fn parse(config: &Json) -> Result<Self> {
        let given = |key: &'static str| config.get(key).filter(|v| !v.is_null()).map(|v| (key, v));
        let rules = given("rope_parameters").or_else(|| given("rope_scaling"));
        let theta = rules
            .and_then(|(_, r)| r.get("rope_theta"))
            .or_else(|| config.get("rope_theta"))
            .filter(|v| !v.is_null())
            .map_or(Some(10_000.0), Json::as_f64)
            .filter(|t| *t > 0.0)
            .ok_or_else(|| wrong("rope_theta", "must be a number above 0"))?;
        let Some((place, rules)) = rules else { return Ok(RopeConfig { theta, scaling: Scaling::Default }) };
        let number = |key: &str| {
            rules[key]
                .as_f64()
                .filter(|v| *v > 0.0)
                .ok_or_else(|| wrong(place, format!("needs `{key}`, a number above 0")))
        };
        let kind = rules["rope_type"].as_str().or(rules["type"].as_str()).unwrap_or("default");
        let scaling = match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: number("factor")? },
            "llama3" => Scaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original: number("original_max_position_embeddings")?,
            },
            other => {
                return Err(wrong(
                    place,
                    format!("has the type \"{other}\"; known are default, linear, llama3"),
                ));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }

    /// θ^(−2i/D) after scaling, for i < D/2.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let half = head_dim / 2;
        (0..half)
            .map(|i| {
                // In f32, as the public implementations do.
                let plain = 1.0f32 / (self.theta as f32).powf(2.0 * i as f32 / head_dim as f32);
                match self.scaling {
                    Scaling::Default => plain,
                    Scaling::Linear { factor } => plain / factor as f32,
                    Scaling::Llama3 { factor, low, high, original } => {
                        let wave = 2.0 * std::f64::consts::PI / f64::from(plain);
                        if wave > original / low {
                            (f64::from(plain) / factor) as f32
                        } else if wave < original / high {
                            plain
                        } else {
                            let smooth = (original / wave - low) / (high - low);
                            ((1.0 - smooth) * f64::from(plain) / factor + smooth * f64::from(plain)) as f32
                        }
                    }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_styles_agree_and_unknown_is_refused() {
        let old = json!({"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let new = json!({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 4.0}});
        let (a, b) = (RopeConfig::parse(&old).unwrap(), RopeConfig::parse(&new).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.inv_freq(8)[0], 0.25);
        let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
        assert!(RopeConfig::parse(&yarn).unwrap_err().to_string().contains("yarn"));
    }
}
