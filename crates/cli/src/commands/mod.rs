//! One file per verb. A command takes resolved settings and the printer; it reads no flags and no environment.

mod account;
mod admin;
mod billing;
mod chat;
mod check;
mod completions;
mod credential;
mod demo;
mod deploy;
mod dev;
mod diff;
mod doctor;
mod folder;
mod found;
mod git;
mod harness;
mod image;
mod init;
mod login;
mod logs;
mod members;
mod play;
mod policy;
mod project;
mod projects;
mod releases;
mod running;
mod serve;
mod webhooks;

use std::path::PathBuf;
use std::process::ExitCode;

use karta_client::{Client, LogFilter};

use crate::args::{Cli, Command, ServerArgs};
use crate::printer::Printer;
use crate::settings;

/// Resolves the settings of the command and runs it.
pub(crate) async fn run(cli: Cli, printer: &Printer) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Chat(args) => {
            let data = settings::data_dir(cli.global.data)?;
            let connection = settings::connection(args.url, args.key, &data)?;
            let settings = chat::Settings {
                project: args.project,
                connection,
                message: args.message,
                session: args.session,
                agent: args.agent,
                approve: args.approve,
                json: cli.global.json,
            };
            Box::pin(chat::run(settings, printer)).await
        }
        Command::Admin(args) => admin::run(args.command, cli.global.data, cli.global.json, printer).await,
        Command::Login(args) => {
            let data = settings::data_dir(cli.global.data)?;
            login::login(args.url, &data, cli.global.json, printer).await
        }
        Command::Logout(args) => login::logout(args.url, printer).await,
        Command::Whoami(args) => {
            let client = client(cli.global.data, args.server)?;
            login::whoami(&client, cli.global.json, printer).await
        }
        Command::Init(args) => {
            let data = settings::data_dir(cli.global.data.clone())?;
            let server = args.server.clone();
            let connection = settings::connection(server.url, server.key, &data).ok();
            let settings = init::Settings { connection, data: cli.global.data, args, json: cli.global.json };
            init::run(&settings, printer)
        }
        Command::Check(args) => check::run(args, cli.global.json, printer).await,
        Command::Deploy(args) => {
            let data = settings::data_dir(cli.global.data)?;
            let server = args.server.clone();
            let connection = settings::connection(server.url, server.key, &data);
            Box::pin(deploy::run(deploy::Settings { connection, args, json: cli.global.json }, printer)).await
        }
        Command::Logs(args) => {
            let (client, served) = server(cli.global.data, args.server)?;
            let project = project::chosen(&client, args.project, served, printer).await?;
            let filter =
                LogFilter { kind: args.kind, version: args.release, after: None, limit: Some(args.lines) };
            logs::run(client, &project, &filter, args.follow, cli.global.json, printer).await
        }
        Command::Releases(args) => {
            let (client, served) = server(cli.global.data, args.server)?;
            releases::run(&client, served, args.command, cli.global.json, printer).await
        }
        Command::Rollback(args) => {
            let (client, served) = server(cli.global.data, args.server.clone())?;
            releases::rollback(&client, served, args, cli.global.json, printer).await
        }
        Command::Previews(args) => {
            let (client, served) = server(cli.global.data, args.server)?;
            projects::previews(&client, served, args.command, cli.global.json, printer).await
        }
        Command::Projects(args) => {
            let client = client(cli.global.data, args.server)?;
            projects::projects(&client, args.command, cli.global.json, printer).await
        }
        Command::GitCredential(args) => credential::run(args, &settings::data_dir(cli.global.data)?, printer),
        Command::Members(args) => {
            let client = client(cli.global.data, args.server)?;
            members::run(&client, args.command, cli.global.json, printer).await
        }
        Command::Keys(args) => {
            let client = client(cli.global.data, args.server)?;
            account::keys(&client, args.command, cli.global.json, printer).await
        }
        Command::Budget(args) => {
            let client = client(cli.global.data, args.server)?;
            account::budget(&client, args.command, cli.global.json, printer).await
        }
        Command::Usage(mut args) => {
            let server = ServerArgs { url: args.server.url.take(), key: args.server.key.take() };
            account::usage(&client(cli.global.data, server)?, &args, cli.global.json, printer).await
        }
        Command::ProviderKeys(args) => {
            let client = client(cli.global.data, args.server)?;
            account::provider_keys(&client, args.command, cli.global.json, printer).await
        }
        Command::Secrets(args) => {
            let (client, served) = server(cli.global.data, args.server)?;
            let project = project::chosen(&client, args.project, served, printer).await?;
            policy::secrets(&client, &project, args.command, cli.global.json, printer).await
        }
        Command::Policy(args) => {
            let client = client(cli.global.data, args.server)?;
            policy::policy(&client, args.command, cli.global.json, printer).await
        }
        Command::Egress(args) => {
            let client = client(cli.global.data, args.server)?;
            policy::egress(&client, args.command, cli.global.json, printer).await
        }
        Command::Token(args) => {
            let client = client(cli.global.data, args.server)?;
            account::token(&client, args.command, cli.global.json, printer).await
        }
        Command::Billing(args) => {
            let client = client(cli.global.data, args.server)?;
            billing::run(&client, args.command, cli.global.json, printer).await
        }
        Command::Webhooks(args) => {
            let client = client(cli.global.data, args.server)?;
            webhooks::run(&client, args.command, cli.global.json, printer).await
        }
        Command::Audit(args) => {
            let client = client(cli.global.data, args.server)?;
            account::audit(&client, args.command, cli.global.json, printer).await
        }
        Command::Harness(args) => {
            let data = settings::data_dir(cli.global.data)?;
            harness::run(args.command, &data, cli.global.json, printer).await
        }
        Command::Image(args) => {
            let data = settings::data_dir(cli.global.data)?;
            image::run(args.command, &data, cli.global.json, printer).await
        }
        Command::Demo(args) => {
            let settings = settings::server(cli.global.data, None)?;
            Box::pin(demo::run(args, settings, printer)).await
        }
        Command::Dev(args) => {
            let settings = settings::server(cli.global.data, args.config.as_deref())?;
            Box::pin(dev::run(args, settings, printer)).await
        }
        Command::Serve(args) => {
            let settings = settings::server(cli.global.data, args.config.as_deref())?;
            Box::pin(serve::run(args, settings, printer)).await
        }
        Command::Doctor(_) => {
            let settings = settings::server(cli.global.data, None)?;
            Box::pin(doctor::run(settings, cli.global.json, printer)).await
        }
        Command::Play(args) => play::run(&args.args).await,
        Command::Completions(args) => completions::run(args.shell, printer),
    }
}

/// A client of the server that is named, or that runs on this machine.
fn client(data: Option<PathBuf>, args: ServerArgs) -> anyhow::Result<Client> {
    server(data, args).map(|(client, _)| client)
}

/// The same, and the project that the server was started for.
fn server(data: Option<PathBuf>, args: ServerArgs) -> anyhow::Result<(Client, Option<String>)> {
    let connection = settings::connection(args.url, args.key, &settings::data_dir(data)?)?;
    Ok((Client::new(&connection.url, connection.key)?, connection.project))
}
