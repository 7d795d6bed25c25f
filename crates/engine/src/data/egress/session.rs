//! Ways out as the engine makes them: for a session, for a build; and what a session reached.

use std::collections::HashMap;
use std::sync::Arc;

use karta_store::SessionRow;
use karta_types::egress::{Decision, Hosts, Place, Record, Rule, propose};
use karta_types::policy::{Build, Recipe};
use karta_types::session::Isolation;
use karta_types::{Body, ErrorCode, OrgId, ProjectId, Seq, SessionId};

use super::secrets::PLACEHOLDER;
use super::{Decisions, Egress, KeptAuthority, Outside, Rules, ToolSecret};
use crate::data::stream::Item;
use crate::{Engine, Error, Principal, Result};

/// Different decisions of a session that are listed.
const LISTED: usize = 1000;

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
        let configured = [&providers.anthropic, &providers.openai].into_iter().flatten();
        let place = |url: &str| {
            let url = reqwest::Url::parse(url).ok()?;
            Place::read(url.host_str()?, url.port_or_known_default())
        };
        configured.filter_map(|one| place(one.base_url.as_deref()?)).collect()
    }

    /// The way out of a build.
    ///
    /// # Errors
    /// The host gives no randomness, or its certificate authorities can't be read.
    pub(crate) async fn build_egress(&self, build: &Build) -> Result<(Egress, Decisions)> {
        let rules = Rules {
            asked: rules(&build.egress)?,
            asked_in: "`[build] egress` in karta.toml",
            models: self.model_places(),
            ..Rules::default()
        };
        Egress::new(self.tasks(), self.outside().await?, rules, Vec::new(), None, self.clock().now())
    }

    /// The way out of a session on a release, with the project's secrets (a preview's are its parent's) and what the organisation demands
    /// now. Where programs trust a certificate authority already, that one is used. Answers it and what it decides.
    ///
    /// # Errors
    /// `overloaded` when the control plane does not answer; a secret can't be opened.
    pub(crate) async fn session_egress(
        &self,
        row: &SessionRow,
        home: ProjectId,
        recipe: &Recipe,
        authority: Option<KeptAuthority>,
    ) -> Result<(Egress, Decisions)> {
        let policy = self.gate().policy(row.org).await?;
        let rules = Rules {
            asked: rules(&recipe.policy.egress)?,
            asked_in: "`[policy] egress` in karta.toml",
            allowed: policy.egress_allow.as_deref().map(rules).transpose()?,
            denied: rules(&policy.egress_deny)?,
            observe: self.settings().egress.observe,
            models: self.model_places(),
        };
        let secrets = self.session_secrets(row, home, recipe).await?;
        Egress::new(self.tasks(), self.outside().await?, rules, secrets, authority, self.clock().now())
    }

    /// The secrets that a release declares, opened. That they are is in the audit log.
    async fn session_secrets(
        &self,
        row: &SessionRow,
        home: ProjectId,
        recipe: &Recipe,
    ) -> Result<Vec<ToolSecret>> {
        if recipe.secrets.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = recipe.secrets.keys().cloned().collect();
        let mut found: HashMap<_, _> =
            self.gate().secrets(row.org, home, &names).await?.into_iter().collect();
        let mut secrets = Vec::with_capacity(names.len());
        for (name, hosts) in &recipe.secrets {
            let hosts = hosts.iter().map(|host| Hosts::parse(host)).collect::<Result<_, _>>();
            let hosts = hosts.map_err(|why| Error::internal("reading where a secret may go", why))?;
            let value = found.remove(name);
            if value.is_some() {
                let resource = format!("{home}/{name}/{}", row.id);
                self.gate().told(row.org, "secret.use", resource, None).await?;
            }
            let placeholder = self.placeholder(row.id, name);
            secrets.push(ToolSecret { name: name.clone(), placeholder, hosts, value });
        }
        Ok(secrets)
    }

    /// What stands for a secret in a session. The same each time, so that what the session has written down stays good; nobody can
    /// guess it, and it is worth nothing in another session.
    fn placeholder(&self, session: SessionId, name: &str) -> String {
        let digest = self.keyring().digest_key(&format!("{PLACEHOLDER}\0{session}\0{name}"));
        format!("{PLACEHOLDER}{}", crate::hex::hex(&digest[..16]))
    }

    /// Holds what a server gives against what the organisation demands.
    ///
    /// # Errors
    /// `isolation_unavailable`.
    pub(crate) async fn check_isolation(&self, org: OrgId, given: Isolation) -> Result<()> {
        match self.gate().policy(org).await?.isolation {
            Some(least) if least > given => Err(Error::told(
                ErrorCode::IsolationUnavailable,
                format!(
                    "the organisation's policy demands `{}` (`karta policy show`); this server gives `{}`",
                    least.as_str(),
                    given.as_str()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// What a session reached and what was refused, as its events tell.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn egress_record(&self, who: &Principal, session: SessionId) -> Result<Record> {
        let mut reader = self.read(who, session, Seq::START).await?;
        let mut decisions: Vec<Decision> = Vec::new();
        let mut known = HashMap::new();
        let mut complete = true;
        while let Some(item) = reader.next_stored().await? {
            complete &= !matches!(item, Item::Gap { .. });
            for decision in item.events().filter_map(|event| told_in(&event.body)).flatten() {
                let same = Decision { count: 0, ..decision.clone() };
                let same = serde_json::to_string(&same).unwrap_or_default();
                match known.get(&same) {
                    Some(&at) => {
                        if let Some(before) = decisions.get_mut::<usize>(at) {
                            before.count = before.count.saturating_add(decision.count);
                        }
                    }
                    None if decisions.len() < LISTED => {
                        known.insert(same, decisions.len());
                        decisions.push(decision);
                    }
                    None => complete = false,
                }
            }
        }
        let rules = propose(&decisions);
        Ok(Record { decisions, rules, complete })
    }
}

/// The decisions that an event tells of.
fn told_in(body: &Body) -> Option<Vec<Decision>> {
    match body {
        Body::System { subtype, detail } if subtype == "egress" => {
            serde_json::from_value(detail.get("decisions")?.clone()).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::egress::told;

    #[test]
    fn what_is_told_is_read_again() {
        let decision = Decision {
            allowed: true,
            method: Some("GET".into()),
            host: "a.example".into(),
            port: 443,
            path: Some("/x".into()),
            rule: Some("a.example".into()),
            why: None,
            count: 3,
        };
        let event = told::event(std::slice::from_ref(&decision));
        assert_eq!(told_in(&event), Some(vec![decision]));
        let other = Body::System { subtype: "queued".into(), detail: serde_json::json!({"decisions": []}) };
        assert_eq!(told_in(&other), None);
    }
}
