//! Ways out as the engine makes them: for a build.

use std::sync::Arc;

use karta_types::egress::{Place, Rule};
use karta_types::policy::Build;

use super::{Decisions, Egress, Outside, Rules};
use crate::{Engine, Error, Result};

/// Rules that were checked when they were written.
fn rules(texts: &[String]) -> Result<Vec<Rule>> {
    let read = |text: &String| {
        Rule::parse(text).map_err(|why| Error::internal("reading the rules of a way out", why))
    };
    texts.iter().map(read).collect()
}

impl Engine {
    /// The world outside, as this host sees it.
    async fn outside(&self) -> Result<Arc<Outside>> {
        let (guarded, loopback) = (self.guarded(), self.settings().releases.loopback);
        let made = self.outside_cell().get_or_try_init(|| async move {
            let doing = "reading which certificate authorities this host trusts";
            tokio::task::spawn_blocking(move || Outside::of_host(guarded, loopback))
                .await
                .map_err(|error| Error::internal(doing, error))?
                .map(Arc::new)
        });
        made.await.cloned()
    }

    /// Where this server calls models.
    fn model_places(&self) -> Vec<Place> {
        let providers = &self.settings().providers;
        let urls = [&providers.anthropic, &providers.openai]
            .into_iter()
            .flatten()
            .filter_map(|one| one.base_url.as_deref());
        let place = |url: &str| {
            let url = reqwest::Url::parse(url).ok()?;
            Place::read(url.host_str()?, url.port_or_known_default())
        };
        urls.filter_map(place).collect()
    }

    /// The way out of a build.
    pub(crate) async fn build_egress(&self, build: &Build) -> Result<(Egress, Decisions)> {
        let rules = Rules {
            asked: rules(&build.egress)?,
            asked_in: "`[build] egress` in karta.toml",
            models: self.model_places(),
            ..Rules::default()
        };
        Egress::new(self.tasks(), self.outside().await?, rules, Vec::new(), self.clock().now())
    }
}
