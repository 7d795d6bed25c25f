//! Projects.

use karta_types::page::Page;
use karta_types::release::Project;
use reqwest::Method;

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
}
