//! Who the key speaks for, and what was used.

use karta_types::OrgId;
use karta_types::usage::Metered;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::client::Client;
use crate::error::Error;

/// Who a credential is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Principal {
    /// `key`, `end_user`, `member` …
    pub kind: String,
    /// Which one.
    pub id: String,
}

/// An organisation by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OrgRef {
    /// The organisation.
    pub id: OrgId,
    /// Its readable name in URLs.
    #[serde(default)]
    pub slug: String,
    /// Its name for people.
    #[serde(default)]
    pub name: String,
}

/// What a credential is and may do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Whoami {
    /// Who it is.
    pub principal: Principal,
    /// Where it belongs.
    pub org: OrgRef,
    /// The role of the member behind it.
    #[serde(default)]
    pub role: Option<String>,
    /// What it may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The one project it reaches, if it is bound to one.
    #[serde(default)]
    pub project: Option<Value>,
}

/// Which usage to sum.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// Sum apart by these: `day`, `project`, `model`, `key`, `end_user`.
    pub group_by: Vec<String>,
}

/// What was used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct UsageReport {
    /// How many turns.
    #[serde(default)]
    pub turns: u64,
    /// Tokens and cost of all of them.
    #[serde(flatten)]
    pub total: Metered,
    /// More members: the groups, if asked for.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Client {
    /// Who the key speaks for.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        self.json("asking who the key is", self.request(Method::GET, self.url(&["whoami"]))).await
    }

    /// Sums what was used.
    ///
    /// # Errors
    /// See [`Client::whoami`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<UsageReport, Error> {
        let mut url = self.url(&["usage"]);
        if !query.group_by.is_empty() {
            url.query_pairs_mut().append_pair("group_by", &query.group_by.join(","));
        }
        self.json("summing what was used", self.request(Method::GET, url)).await
    }
}
