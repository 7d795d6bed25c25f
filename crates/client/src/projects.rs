//! Projects and their previews.

use karta_types::page::Page;
use karta_types::release::{Preview, Project};
use reqwest::Method;
use serde_json::json;

use crate::client::{Client, append};
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

    /// Makes a project that has no release yet; the first [`Client::publish`] makes one by itself.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn create_project(&self, slug: &str, name: Option<&str>) -> Result<Project, Error> {
        let body = json!({ "slug": slug, "name": name });
        self.json("making the project", self.request(Method::POST, self.url(&["projects"])).json(&body)).await
    }

    /// Gives a project another name for people.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn rename_project(&self, project: &str, name: &str) -> Result<Project, Error> {
        let request = self.request(Method::PATCH, self.url(&["projects", project]));
        self.json("renaming the project", request.json(&json!({ "name": name }))).await
    }

    /// Erases a project with its releases and sessions.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn delete_project(&self, project: &str) -> Result<(), Error> {
        let request = self.request(Method::DELETE, self.url(&["projects", project]));
        self.send("deleting the project", request).await.map(drop)
    }

    /// The project's previews. Each is reached as a project of its own, by its `slug`.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn previews(&self, project: &str, cursor: Option<&str>) -> Result<Page<Preview>, Error> {
        let mut url = self.url(&["projects", project, "previews"]);
        append(&mut url, &[("cursor", cursor.map(str::to_owned))]);
        self.json("listing previews", self.request(Method::GET, url)).await
    }

    /// Ends a preview, with its sessions.
    ///
    /// # Errors
    /// See [`Client::projects`].
    pub async fn remove_preview(&self, project: &str, name: &str) -> Result<(), Error> {
        let url = self.url(&["projects", project, "previews", name]);
        self.send("removing the preview", self.request(Method::DELETE, url)).await.map(drop)
    }
}
