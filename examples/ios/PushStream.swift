// A person's stream in an iOS app, with LDSwiftEventSource 3 (https://github.com/launchdarkly/swift-eventsource).
// Call start() when the app comes to the foreground and stop() when it leaves it.

import Foundation
import LDSwiftEventSource

struct PushEvent: Decodable {
    let id: String
    let type: String
    let desc: String
    let ts: String
}

final class PushStream: EventHandler {
    private let url: URL
    private let token: () -> String
    private let show: (PushEvent, Data) -> Void
    private var source: EventSource?
    private var seen = Set<String>()
    private let defaults = UserDefaults.standard
    private static let lastIdKey = "pushsse.last-event-id"

    /// `url` is https://…/v1/stream?named=0; `show` also gets the data as it came, for `message`, which is any JSON.
    init(url: URL, token: @escaping () -> String, show: @escaping (PushEvent, Data) -> Void) {
        self.url = url
        self.token = token
        self.show = show
    }

    func start() {
        guard source == nil else { return }
        var config = EventSource.Config(handler: self, url: url)
        config.headers = ["Authorization": "Bearer \(token())"]
        config.lastEventId = defaults.string(forKey: Self.lastIdKey) ?? ""
        config.idleTimeout = 60  // three heartbeats of 15 s, and some
        config.reconnectTime = 3
        config.maxReconnectTime = 60
        source = EventSource(config: config)
        source?.start()
    }

    func stop() {
        source?.stop()
        source = nil
    }

    func onOpened() {}
    func onClosed() {}
    func onComment(comment: String) {}
    func onError(error: Error) {}

    func onMessage(eventType: String, messageEvent: MessageEvent) {
        let data = Data(messageEvent.data.utf8)
        switch eventType {
        case "message":
            if let event = try? JSONDecoder().decode(PushEvent.self, from: data), seen.insert(event.id).inserted {
                show(event, data)
            }
        case "exception":
            struct Ending: Decodable { let retry: Bool }
            if let ending = try? JSONDecoder().decode(Ending.self, from: data), !ending.retry {
                DispatchQueue.main.async { self.stop() }  // get a new token, then start() again
            }
        default:
            break
        }
        // After the event was handled: what isn't handled is sent again.
        if !messageEvent.lastEventId.isEmpty {
            defaults.set(messageEvent.lastEventId, forKey: Self.lastIdKey)
        }
    }
}
