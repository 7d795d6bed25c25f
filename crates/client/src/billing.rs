//! What the organisation pays.

use karta_types::billing::{Billing, Credit};
use karta_types::page::Page;
use reqwest::Method;
use serde_json::json;

use crate::client::append;
use crate::{Client, Error};

impl Client {
    /// Subscription, plans and credit.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn billing(&self) -> Result<Billing, Error> {
        self.json("reading what is paid", self.request(Method::GET, self.url(&["billing"]))).await
    }

    /// Credit that was granted.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn credits(&self) -> Result<Page<Credit>, Error> {
        self.json("listing credit", self.request(Method::GET, self.url(&["billing", "credit"]))).await
    }

    /// Begins to subscribe: answers where a person pays.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn checkout(&self, plan: &str) -> Result<String, Error> {
        let request = self.request(Method::POST, self.url(&["billing", "checkout"]));
        let answer: serde_json::Value =
            self.json("subscribing", request.json(&json!({ "plan": plan }))).await?;
        Ok(answer.get("url").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
    }

    /// A month's statement, in a form: `json`, `csv` or `html`.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn statement(&self, month: &str, form: &str) -> Result<String, Error> {
        let mut url = self.url(&["billing", "statements", month]);
        append(&mut url, &[("format", Some(form.to_owned()))]);
        let doing = "reading a statement";
        let answer = self.send(doing, self.request(Method::GET, url)).await?;
        answer.text().await.map_err(|why| Error::transport(doing, why))
    }
}
