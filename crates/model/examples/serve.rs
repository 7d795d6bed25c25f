//! Serves the scripted model on a port until interrupted: `cargo run -p karta-model --example serve -- 4010`

use karta_model::{Options, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let server = Server::start(Options { port, ..Options::default() }).await?;
    #[expect(clippy::print_stdout, reason = "the address is what the example is for")]
    {
        println!("{}", server.base_url());
    }
    std::future::pending().await
}
