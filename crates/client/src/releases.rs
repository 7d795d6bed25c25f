//! Releases: what there is, what differs, which of them takes new turns.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use karta_types::page::Page;
use karta_types::release::{Activation, Project, Release, ReleaseDiff};
use reqwest::Method;
use serde_json::json;

use crate::client::{Client, append};
use crate::error::Error;

impl Client {
    /// The project's releases, newest first.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn releases(&self, project: &str, cursor: Option<&str>) -> Result<Page<Release>, Error> {
        let mut url = self.url(&["projects", project, "releases"]);
        append(&mut url, &[("cursor", cursor.map(str::to_owned))]);
        self.json("listing releases", self.request(Method::GET, url)).await
    }

    /// One release.
    ///
    /// # Errors
    /// See [`Client::releases`].
    pub async fn release(&self, project: &str, version: u64) -> Result<Release, Error> {
        let url = self.url(&["projects", project, "releases", &version.to_string()]);
        self.json("reading the release", self.request(Method::GET, url)).await
    }

    /// The project's newest activations: which release became active, by whom, why.
    ///
    /// # Errors
    /// See [`Client::releases`].
    pub async fn activations(&self, project: &str) -> Result<Page<Activation>, Error> {
        let request = self.request(Method::GET, self.url(&["projects", project, "activations"]));
        self.json("listing activations", request).await
    }

    /// Makes a release the active one.
    ///
    /// # Errors
    /// `not_found`, `release_not_ready`, or the way there or back failing.
    pub async fn activate(
        &self,
        project: &str,
        version: u64,
        reason: Option<&str>,
    ) -> Result<Activation, Error> {
        let url = self.url(&["projects", project, "releases", &version.to_string(), "activate"]);
        let request = self.request(Method::POST, url).json(&json!({ "reason": reason }));
        self.json("activating the release", request).await
    }

    /// Lets a part of the new sessions, `percent` of a hundred, run on a release: the canary.
    ///
    /// # Errors
    /// See [`Client::activate`].
    pub async fn canary(
        &self,
        project: &str,
        version: u64,
        percent: u8,
        reason: Option<&str>,
    ) -> Result<Project, Error> {
        let url = self.url(&["projects", project, "releases", &version.to_string(), "activate"]);
        let body = json!({ "reason": reason, "percent": percent });
        self.json("starting the canary", self.request(Method::POST, url).json(&body)).await
    }

    /// Makes the canary the active release.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn promote(&self, project: &str, reason: Option<&str>) -> Result<Activation, Error> {
        let request = self.request(Method::POST, self.url(&["projects", project, "canary", "promote"]));
        self.json("promoting the canary", request.json(&json!({ "reason": reason }))).await
    }

    /// Ends the canary; new sessions all run on the active release again.
    ///
    /// # Errors
    /// See [`Client::promote`].
    pub async fn abort(&self, project: &str, reason: Option<&str>) -> Result<Project, Error> {
        let request = self.request(Method::POST, self.url(&["projects", project, "canary", "abort"]));
        self.json("ending the canary", request.json(&json!({ "reason": reason }))).await
    }

    /// Goes back to the release that was active before, or to an earlier active one.
    ///
    /// # Errors
    /// `nothing_to_roll_back`, or the way there or back failing.
    pub async fn roll_back(
        &self,
        project: &str,
        to: Option<u64>,
        reason: Option<&str>,
    ) -> Result<Activation, Error> {
        let url = self.url(&["projects", project, "rollback"]);
        let request = self.request(Method::POST, url).json(&json!({ "to": to, "reason": reason }));
        self.json("rolling back", request).await
    }

    /// How release `after` differs from `before`.
    ///
    /// # Errors
    /// See [`Client::releases`].
    pub async fn diff(&self, project: &str, before: u64, after: u64) -> Result<ReleaseDiff, Error> {
        let (before, after) = (before.to_string(), after.to_string());
        let url = self.url(&["projects", project, "releases", &before, "diff", &after]);
        self.json("comparing the releases", self.request(Method::GET, url)).await
    }

    /// Deletes a release's files; its record stays.
    ///
    /// # Errors
    /// `release_in_use`, or the way there or back failing.
    pub async fn delete_release(&self, project: &str, version: u64) -> Result<(), Error> {
        let url = self.url(&["projects", project, "releases", &version.to_string()]);
        self.send("deleting the release", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// A release's files as a tar.gz, piece by piece.
    ///
    /// # Errors
    /// See [`Client::releases`]; the connection may also fail on the way.
    pub async fn download(
        &self,
        project: &str,
        version: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + use<>, Error> {
        let doing = "downloading the release";
        let url = self.url(&["projects", project, "releases", &version.to_string(), "archive"]);
        let answer = self.send(doing, self.request(Method::GET, url)).await?;
        Ok(answer.bytes_stream().map(move |piece| piece.map_err(|why| Error::transport(doing, why))).boxed())
    }
}
