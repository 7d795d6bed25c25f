//! Projects, their releases, and which of them is active.

use karta_types::page::Page;
use karta_types::release::{Activation, Project, Release};
use reqwest::Method;
use serde_json::json;

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// The projects this key reaches.
    ///
    /// # Errors
    /// The server's refusal, or the way there or back failing.
    pub async fn projects(&self) -> Result<Page<Project>, Error> {
        self.json("listing projects", self.request(Method::GET, self.url(&["projects"]))).await
    }

    /// One project, by id or slug.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn project(&self, project: &str) -> Result<Project, Error> {
        self.json("reading the project", self.request(Method::GET, self.url(&["projects", project]))).await
    }

    /// The project's newest releases.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn releases(&self, project: &str) -> Result<Page<Release>, Error> {
        let request = self.request(Method::GET, self.url(&["projects", project, "releases"]));
        self.json("listing releases", request).await
    }

    /// The project's newest activations: which release became active, by whom, why.
    ///
    /// # Errors
    /// See [`Client::projects`].
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
}
