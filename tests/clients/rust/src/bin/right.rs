// reqwest-eventsource, with a watch for silence, a fresh token for each connection, and a client that drops repeats.
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use reqwest_eventsource::{retry::Never, Error, Event, EventSource};
use serde_json::{json, Value};

const REMEMBERED: usize = 1000;

struct Stream {
    url: String,
    last_id: String,
    retry: Duration,
    silence: Duration,
    failures: i32,
    seen: HashSet<String>,
    order: VecDeque<String>,
}

fn token() -> String {
    std::fs::read_to_string(std::env::var("PUSHSSE_TOKEN_FILE").unwrap()).unwrap()
}

impl Stream {
    // One connection; Some(why) where the service doesn't want this token any more.
    async fn one(&mut self, token: &str) -> Option<String> {
        // A client of its own: over HTTP/2 the next stream would go into the connection that has died.
        let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).build().unwrap();
        let mut request = client.get(&self.url).bearer_auth(token);
        if !self.last_id.is_empty() {
            request = request.header("Last-Event-ID", &self.last_id);
        }
        let mut source = EventSource::new(request).unwrap();
        // It would repeat its first request, with the old token.
        source.set_retry_policy(Box::new(Never));
        loop {
            // The service sends something at least once a heartbeat. After three silent ones the connection is dead.
            match tokio::time::timeout(self.silence, source.next()).await {
                Ok(Some(Ok(Event::Open))) => {}
                Ok(Some(Ok(Event::Message(message)))) => {
                    let data: Value = serde_json::from_str(&message.data).unwrap();
                    if message.event == "exception" && data["retry"] == false {
                        return Some(data["code"].to_string());
                    }
                    self.hear(&message.event, message.retry, data);
                    // Only after the event was handled: an event that wasn't handled is sent again.
                    self.last_id = message.id;
                }
                Ok(Some(Err(Error::InvalidStatusCode(status, _)))) if [400, 401, 403].contains(&status.as_u16()) => {
                    return Some(status.to_string());
                }
                Ok(Some(Err(_)) | None) | Err(_) => return None,
            }
        }
    }

    fn hear(&mut self, event: &str, retry: Option<Duration>, data: Value) {
        self.retry = retry.unwrap_or(self.retry);
        if event == "ready" {
            self.failures = 0;
            self.silence = Duration::from_secs_f64(3.0 * data["heartbeat_s"].as_f64().unwrap());
            if data["resume"] == "gap" {
                eprintln!("some events were missed: reload what you show");
            }
        }
        if data["message"].is_null() || self.is_new(data["id"].as_str().unwrap()) {
            println!("{}", json!({"event": event, "data": data}));
        }
    }

    // The id in the data is the same in every replay.
    fn is_new(&mut self, id: &str) -> bool {
        if !self.seen.insert(id.into()) {
            return false;
        }
        self.order.push_back(id.into());
        if self.order.len() > REMEMBERED {
            self.seen.remove(&self.order.pop_front().unwrap());
        }
        true
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut stream = Stream {
        url: std::env::args().nth(1).expect("the stream's address"),
        last_id: String::new(),
        retry: Duration::from_secs(3),
        silence: Duration::from_secs(45),
        failures: 0,
        seen: HashSet::new(),
        order: VecDeque::new(),
    };
    loop {
        let used = token();
        if let Some(why) = stream.one(&used).await {
            // The same call can never succeed; with another token it may.
            if token() == used {
                eprintln!("the stream has ended: {why}");
                std::process::exit(1);
            }
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let jitter = 0.8 + 0.4 * f64::from(now.subsec_micros()) / 1e6;
        let wait = stream.retry.mul_f64(1.5_f64.powi(stream.failures.min(8)));
        stream.failures += 1;
        tokio::time::sleep(wait.min(Duration::from_secs(60)).mul_f64(jitter)).await;
    }
}
