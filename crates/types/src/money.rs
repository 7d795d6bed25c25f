//! Money is whole micro-dollars. There is no way in from a float and no arithmetic that wraps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::usage::Usage;

/// Micro-dollars: a millionth of a US dollar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Micros(i64);

impl Micros {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many micro-dollars.
    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    /// The number of micro-dollars.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The sum, unless it would not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, unless it would not fit.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The sum, at most the largest amount there is: a bill may stick at the end, never wrap to a credit.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let whole = self.0.unsigned_abs();
        write!(f, "{sign}${}.{:06}", whole / 1_000_000, whole % 1_000_000)
    }
}

/// What a million tokens cost, by class, in micro-dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Fresh input.
    pub input: i64,
    /// Output, thinking included.
    pub output: i64,
    /// Input read from the provider's cache.
    #[serde(default)]
    pub cache_read: i64,
    /// Input written to the provider's cache.
    #[serde(default)]
    pub cache_write: i64,
    /// What it costs when the input is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long: Option<LongPrice>,
}

/// What a call costs, all of it, when its input is longer than a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongPrice {
    /// Input tokens, cache classes included, that are not yet long.
    pub above: u64,
    /// Fresh input.
    pub input: i64,
    /// Output, thinking included.
    pub output: i64,
    /// Input read from the provider's cache.
    #[serde(default)]
    pub cache_read: i64,
    /// Input written to the provider's cache.
    #[serde(default)]
    pub cache_write: i64,
}

impl Price {
    /// The price that holds for so many tokens of input, cache classes included.
    #[must_use]
    pub fn at(self, input: u64) -> Self {
        match self.long {
            Some(LongPrice { above, input: fresh, output, cache_read, cache_write }) if input > above => {
                Self { input: fresh, output, cache_read, cache_write, long: None }
            }
            _ => Self { long: None, ..self },
        }
    }

    /// What `usage` costs, rounded up once, at the end, to a whole micro-dollar.
    pub fn cost(&self, usage: &Usage) -> Micros {
        let input = usage
            .input_tokens
            .saturating_add(usage.cache_read_tokens)
            .saturating_add(usage.cache_write_tokens);
        let price = self.at(input);
        let part = |tokens: u64, price: i64| i128::from(tokens) * i128::from(price.max(0));
        let total = part(usage.input_tokens, price.input)
            + part(usage.output_tokens, price.output)
            + part(usage.cache_read_tokens, price.cache_read)
            + part(usage.cache_write_tokens, price.cache_write);
        let micros = total.div_euclid(1_000_000) + i128::from(total.rem_euclid(1_000_000) > 0);
        Micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cost_is_rounded_up_once() {
        let price = Price {
            input: 3_000_000,
            output: 15_000_000,
            cache_read: 300_000,
            cache_write: 3_750_000,
            long: None,
        };
        let usage = Usage { input_tokens: 1, output_tokens: 0, cache_read_tokens: 1, cache_write_tokens: 0 };
        assert_eq!(price.cost(&usage), Micros::new(4));
        assert_eq!(Micros::new(1_500_000).to_string(), "$1.500000");
    }

    #[test]
    fn long_input_makes_the_whole_call_dearer() {
        let long = LongPrice {
            above: 200_000,
            input: 6_000_000,
            output: 22_500_000,
            cache_read: 600_000,
            cache_write: 7_500_000,
        };
        let price = Price {
            input: 3_000_000,
            output: 15_000_000,
            cache_read: 300_000,
            cache_write: 3_750_000,
            long: Some(long),
        };
        let cost = |input: u64, cached: u64| {
            let usage = Usage {
                input_tokens: input,
                output_tokens: 1_000,
                cache_read_tokens: cached,
                cache_write_tokens: 0,
            };
            price.cost(&usage).get()
        };
        assert_eq!(cost(100_000, 100_000), 300_000 + 30_000 + 15_000);
        assert_eq!(cost(100_001, 100_000), 600_006 + 60_000 + 22_500);
    }

    proptest! {
        #[test]
        fn never_negative_never_below_the_true_price(i in 0u64..1 << 40, o in 0u64..1 << 40, p in 0i64..1 << 40) {
            let price = Price { input: p, output: p, cache_read: 0, cache_write: 0, long: None };
            let usage = Usage { input_tokens: i, output_tokens: o, ..Usage::default() };
            let exact = (i128::from(i) + i128::from(o)) * i128::from(p);
            let cost = i128::from(price.cost(&usage).get());
            if cost < i128::from(i64::MAX) {
                prop_assert!(cost * 1_000_000 >= exact && (cost - 1) * 1_000_000 < exact.max(1));
            }
        }
    }
}
