//! What models cost: a dated list, in micro-dollars per million tokens.

use std::collections::BTreeMap;

use karta_store::Dearest;
use karta_types::Micros;
use karta_types::Usage;
use karta_types::money::Price;
use serde::Deserialize;

/// The price list. A model is looked up by its longest matching pattern.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// A model's name, or the beginning of it and a `*`.
    model: String,
    /// The day from which the price was read; the latest one before a call holds.
    since: String,
    input: i64,
    output: i64,
    #[serde(default)]
    cache_read: i64,
    #[serde(default)]
    cache_write: i64,
    /// Set by the operator: wins over the list.
    #[serde(skip)]
    own: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    price: Vec<Entry>,
}

impl Prices {
    /// The list this version comes with.
    ///
    /// # Errors
    /// It can't be read: a mistake in the build, which a test excludes.
    pub fn list() -> Result<Self, String> {
        let list: List = toml::from_str(include_str!("prices.toml")).map_err(|error| error.to_string())?;
        Ok(Self { entries: list.price })
    }

    /// With prices that the operator sets: they win over the list, whatever the date.
    #[must_use]
    pub fn with(mut self, own: BTreeMap<String, Price>) -> Self {
        for (model, price) in own {
            let Price { input, output, cache_read, cache_write } = price;
            self.entries.push(Entry {
                model,
                since: String::new(),
                input,
                output,
                cache_read,
                cache_write,
                own: true,
            });
        }
        self
    }

    /// What the usage of this model cost on this day (`2026-11-24`). `None`: the model has no price here.
    pub fn cost(&self, model: &str, day: &str, usage: &Usage) -> Option<Micros> {
        self.find(model, day).map(|price| price.cost(usage))
    }

    /// What so many tokens written to the cache for an hour cost beyond the five-minute price. They cost twice fresh input.
    pub fn long_cache(&self, model: &str, day: &str, tokens: u64) -> Micros {
        self.find(model, day).map_or(Micros::ZERO, |price| {
            let more = (2 * price.input).saturating_sub(price.cache_write).max(0);
            Price { input: more, output: 0, cache_read: 0, cache_write: 0 }
                .cost(&Usage { input_tokens: tokens, ..Usage::default() })
        })
    }

    /// The dearest that a token of input and of output of this model can be.
    pub fn dearest(&self, model: &str, day: &str, long_cache: bool) -> Option<Dearest> {
        self.find(model, day).map(|price| {
            let classes = [
                price.input,
                price.cache_read,
                price.cache_write,
                if long_cache { 2 * price.input } else { 0 },
            ];
            Dearest { input: classes.into_iter().fold(0, i64::max), output: price.output.max(0) }
        })
    }

    fn find(&self, model: &str, day: &str) -> Option<Price> {
        let fits = |entry: &&Entry| {
            let named = match entry.model.strip_suffix('*') {
                Some(beginning) => model.starts_with(beginning),
                None => model == entry.model,
            };
            named && entry.since.as_str() <= day
        };
        let rank = |entry: &&Entry| (entry.own, entry.model.len(), entry.since.clone());
        let best = self.entries.iter().filter(fits).max_by_key(rank)?;
        let Entry { input, output, cache_read, cache_write, .. } = *best;
        Some(Price { input, output, cache_read, cache_write })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_reads_and_the_longest_name_wins() {
        let prices = Prices::list().unwrap();
        let usage = Usage { input_tokens: 1_000_000, ..Usage::default() };
        let cost = |model: &str| prices.cost(model, "2026-11-24", &usage).map(Micros::get);
        assert_eq!(cost("claude-sonnet-4-5-20250929"), Some(3_000_000));
        assert_eq!(cost("claude-haiku-4-5"), Some(1_000_000));
        assert_eq!(cost("a-model-nobody-knows"), None);
        assert_eq!(prices.cost("claude-sonnet-4-5", "2001-01-01", &usage), None);
    }

    #[test]
    fn the_operators_price_wins() {
        let own = Price { input: 7, output: 0, cache_read: 0, cache_write: 0 };
        let prices = Prices::list().unwrap().with([("claude-haiku-4-5".to_owned(), own)].into());
        let usage = Usage { input_tokens: 1_000_000, ..Usage::default() };
        assert_eq!(prices.cost("claude-haiku-4-5", "2026-11-24", &usage), Some(Micros::new(7)));
    }
}
