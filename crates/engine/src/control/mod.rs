//! The control plane: who may, how much, what it cost.

pub use karta_store::grants;

pub mod api_keys;
pub mod audit;
pub mod billing;
pub mod budgets;
pub mod encryption;
pub mod keys;
pub mod local;
pub mod members;
pub mod oidc;
mod org_policy;
pub mod provider_keys;
pub mod rates;
pub mod replies;
pub mod session_tokens;
pub mod sign_in;
pub(crate) mod tool_secrets;
pub mod usage;
pub mod webhooks;
