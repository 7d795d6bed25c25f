//! People, invitations, and signing a terminal in.

use karta_types::page::Page;
use karta_types::person::{DeviceGrant, Invitation, Member, NewAccess, NewInvitation};
use karta_types::{InvitationId, Role, UserId};
use reqwest::Method;
use serde_json::json;

use crate::client::append;
use crate::{Client, Error};

impl Client {
    /// The organisation's people, by id.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn members(&self, cursor: Option<&str>) -> Result<Page<Member>, Error> {
        let mut url = self.url(&["members"]);
        append(&mut url, &[("cursor", cursor.map(str::to_owned))]);
        self.json("listing members", self.request(Method::GET, url)).await
    }

    /// Gives somebody another role.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn change_member(&self, id: UserId, role: Role) -> Result<Member, Error> {
        let url = self.url(&["members", &id.to_string()]);
        self.json("changing a role", self.request(Method::PATCH, url).json(&json!({ "role": role }))).await
    }

    /// Removes somebody from the organisation.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn remove_member(&self, id: UserId) -> Result<(), Error> {
        let url = self.url(&["members", &id.to_string()]);
        self.send("removing a member", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// Invitations that were not yet taken up.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn invitations(&self) -> Result<Page<Invitation>, Error> {
        self.json("listing invitations", self.request(Method::GET, self.url(&["invitations"]))).await
    }

    /// Invites somebody.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn invite(&self, email: &str, role: Role) -> Result<NewInvitation, Error> {
        let body = json!({ "email": email, "role": role });
        self.json("inviting somebody", self.request(Method::POST, self.url(&["invitations"])).json(&body))
            .await
    }

    /// Takes an invitation back.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn revoke_invitation(&self, id: InvitationId) -> Result<(), Error> {
        let url = self.url(&["invitations", &id.to_string()]);
        self.send("taking an invitation back", self.request(Method::DELETE, url)).await.map(drop)
    }

    /// Ends the personal access token that this client has.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn sign_out(&self) -> Result<(), Error> {
        let url = self.url(&["whoami", "sign-out"]);
        self.send("signing out", self.request(Method::POST, url)).await.map(drop)
    }

    /// Begins to sign in: a person decides at the address in the answer.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn begin_device(&self) -> Result<DeviceGrant, Error> {
        let request = self.request(Method::POST, self.page(&["login", "device"]));
        self.json("beginning to sign in", request).await
    }

    /// Asks whether the person has decided. While nobody has, the problem's `reason` is `authorization_pending` or `slow_down`.
    ///
    /// # Errors
    /// The server's refusal, or the way to it.
    pub async fn take_device(&self, device_code: &str) -> Result<NewAccess, Error> {
        let request = self.request(Method::POST, self.page(&["login", "device", "token"]));
        self.json("signing in", request.json(&json!({ "device_code": device_code }))).await
    }
}
