//! What models cost: a dated list, in micro-dollars per million tokens.

use std::collections::BTreeMap;

use karta_store::Dearest;
use karta_types::money::{LongPrice, Price};
use karta_types::{Micros, OrgId, Usage};
use serde::Deserialize;

/// The price list. A model is looked up by its longest matching pattern.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    entries: Vec<Entry>,
    /// What organisations pay otherwise.
    of_orgs: BTreeMap<OrgId, Vec<Entry>>,
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
    #[serde(default)]
    long: Option<LongPrice>,
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
        Ok(Self { entries: list.price, of_orgs: BTreeMap::new() })
    }

    /// With prices that the operator sets: they win over the list, whatever the date.
    #[must_use]
    pub fn with(mut self, own: BTreeMap<String, Price>) -> Self {
        self.entries.extend(own.into_iter().map(Entry::own));
        self
    }

    /// With prices of single organisations: they win over all others.
    #[must_use]
    pub fn with_orgs(mut self, orgs: BTreeMap<OrgId, BTreeMap<String, Price>>) -> Self {
        let entries = |own: BTreeMap<String, Price>| own.into_iter().map(Entry::own).collect();
        self.of_orgs = orgs.into_iter().map(|(org, own)| (org, entries(own))).collect();
        self
    }

    /// What the usage of this model cost on this day (`2026-11-24`). `None`: the model has no price here.
    pub fn cost(&self, org: Option<OrgId>, model: &str, day: &str, usage: &Usage) -> Option<Micros> {
        self.find(org, model, day).map(|price| price.cost(usage))
    }

    /// What so many tokens written to the cache for an hour cost beyond the five-minute price. They cost twice fresh input.
    pub fn long_cache(
        &self,
        org: Option<OrgId>,
        model: &str,
        day: &str,
        usage: &Usage,
        tokens: u64,
    ) -> Micros {
        let input = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens;
        self.find(org, model, day).map_or(Micros::ZERO, |price| {
            let price = price.at(input);
            let more = (2 * price.input).saturating_sub(price.cache_write).max(0);
            Price { input: more, output: 0, cache_read: 0, cache_write: 0, long: None }
                .cost(&Usage { input_tokens: tokens, ..Usage::default() })
        })
    }

    /// The dearest that a token of input and of output of this model can be, for at most so much input.
    pub fn dearest(
        &self,
        org: Option<OrgId>,
        model: &str,
        day: &str,
        input: u64,
        long_cache: bool,
    ) -> Option<Dearest> {
        self.find(org, model, day).map(|price| {
            let price = price.at(input);
            let classes = [
                price.input,
                price.cache_read,
                price.cache_write,
                if long_cache { 2 * price.input } else { 0 },
            ];
            Dearest { input: classes.into_iter().fold(0, i64::max), output: price.output.max(0) }
        })
    }

    fn find(&self, org: Option<OrgId>, model: &str, day: &str) -> Option<Price> {
        // A cloud's name for a model: `us.anthropic.claude-…`.
        let model = model.rsplit_once("anthropic.").map_or(model, |(_, name)| name);
        let fits = |entry: &&Entry| {
            let named = match entry.model.strip_suffix('*') {
                Some(beginning) => model.starts_with(beginning),
                None => model == entry.model,
            };
            named && entry.since.as_str() <= day
        };
        let rank = |entry: &&Entry| (entry.own, entry.model.len(), entry.since.clone());
        let best = |entries: &[Entry]| entries.iter().filter(fits).max_by_key(rank).map(Entry::price);
        let of_org = org.and_then(|org| self.of_orgs.get(&org)).and_then(|entries| best(entries));
        of_org.or_else(|| best(&self.entries))
    }
}

impl Entry {
    fn own((model, price): (String, Price)) -> Self {
        let Price { input, output, cache_read, cache_write, long } = price;
        Self { model, since: String::new(), input, output, cache_read, cache_write, long, own: true }
    }

    const fn price(&self) -> Price {
        let Self { input, output, cache_read, cache_write, long, .. } = self;
        Price {
            input: *input,
            output: *output,
            cache_read: *cache_read,
            cache_write: *cache_write,
            long: *long,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_reads_and_the_longest_name_wins() {
        let prices = Prices::list().unwrap();
        let usage = Usage { input_tokens: 100_000, ..Usage::default() };
        let cost = |model: &str| prices.cost(None, model, "2026-11-24", &usage).map(Micros::get);
        assert_eq!(cost("claude-sonnet-4-5-20250929"), Some(300_000));
        assert_eq!(cost("claude-haiku-4-5"), Some(100_000));
        assert_eq!(cost("a-model-nobody-knows"), None);
        assert_eq!(prices.cost(None, "claude-sonnet-4-5", "2001-01-01", &usage), None);
    }

    #[test]
    fn the_operators_price_wins() {
        let own = Price { input: 7, output: 0, cache_read: 0, cache_write: 0, long: None };
        let prices = Prices::list().unwrap().with([("claude-haiku-4-5".to_owned(), own)].into());
        let usage = Usage { input_tokens: 1_000_000, ..Usage::default() };
        let cost = |prices: &Prices, org, model: &str| {
            prices.cost(org, model, "2026-11-24", &usage).map(Micros::get)
        };
        assert_eq!(cost(&prices, None, "claude-haiku-4-5"), Some(7));
        // An organisation's own wins over that, for its models and for it alone.
        let (one, two) = (OrgId::from_u128(1), OrgId::from_u128(2));
        let of_one = [("claude-*".to_owned(), Price { input: 5, ..own })].into();
        let prices = prices.with_orgs([(one, of_one)].into());
        assert_eq!(cost(&prices, Some(one), "claude-haiku-4-5"), Some(5));
        assert_eq!(cost(&prices, Some(two), "claude-haiku-4-5"), Some(7));
        assert_eq!(cost(&prices, Some(one), "gpt-5"), cost(&prices, None, "gpt-5"));
    }

    #[test]
    fn the_dearest_is_the_price_of_long_input_only_when_the_input_can_be_long() {
        let prices = Prices::list().unwrap();
        let dearest = |input| prices.dearest(None, "claude-sonnet-4-5", "2026-11-24", input, false).unwrap();
        assert_eq!((dearest(200_000).input, dearest(200_000).output), (3_750_000, 15_000_000));
        assert_eq!((dearest(200_001).input, dearest(200_001).output), (7_500_000, 22_500_000));
    }
}
