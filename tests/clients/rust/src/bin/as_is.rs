// reqwest-eventsource with a header, and nothing around it.
use futures_util::StreamExt;
use reqwest_eventsource::{Event, EventSource};
use serde_json::{json, Value};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = std::env::args().nth(1).expect("the stream's address");
    let token = std::fs::read_to_string(std::env::var("PUSHSSE_TOKEN_FILE").unwrap()).unwrap();
    let mut source = EventSource::new(reqwest::Client::new().get(url).bearer_auth(token)).unwrap();
    while let Some(event) = source.next().await {
        match event {
            Ok(Event::Open) => {}
            Ok(Event::Message(message)) => {
                let data: Value = serde_json::from_str(&message.data).unwrap();
                println!("{}", json!({"event": message.event, "data": data}));
            }
            Err(error) => eprintln!("{error}"),
        }
    }
}
