// A person's stream in an iOS app, with LDSwiftEventSource 3 (https://github.com/launchdarkly/swift-eventsource).
// Call start() when the app comes to the foreground and stop() when it leaves it, both on the main queue.

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
    private let gap: () -> Void
    private let ended: (String) -> Void
    private var source: EventSource?
    private var used = ""
    private var stops = 0 // a stop() in the meantime ends a wait
    private var seen = Set<String>()
    private let defaults = UserDefaults.standard
    private static let lastIdKey = "pushsse.last-event-id"

    /// `url` is https://…/v1/stream?named=0. `token` returns the newest token; it is called on the source's queue, too. `show` also gets the data as received, for `message`, which is any JSON.
    /// `gap`: events were missed that the service no longer has; reload what is shown.
    /// `ended`: the stream ended for good; sign in again, then call start(). It is called on the main queue, the
    /// others on the source's queue.
    init(
        url: URL,
        token: @escaping () -> String,
        show: @escaping (PushEvent, Data) -> Void,
        gap: @escaping () -> Void,
        ended: @escaping (String) -> Void
    ) {
        self.url = url
        self.token = token
        self.show = show
        self.gap = gap
        self.ended = ended
    }

    func start() {
        guard source == nil else { return }
        var config = EventSource.Config(handler: self, url: url)
        // Called for each connection, also when the library reconnects by itself: the token is always the newest.
        config.headerTransform = { [weak self] headers in
            guard let self else { return headers }
            self.used = self.token()
            return headers.merging(["Authorization": "Bearer \(self.used)"]) { $1 }
        }
        config.lastEventId = defaults.string(forKey: Self.lastIdKey) ?? ""
        // Watches for silence: after three heartbeats of 15 s without a byte the connection is dead and is reopened.
        // Set it to three times PUSHSSE_HEARTBEAT_S if that is longer.
        config.idleTimeout = 45
        config.reconnectTime = 3
        config.maxReconnectTime = 60
        config.connectionErrorHandler = { [weak self] error in
            guard let refused = error as? UnsuccessfulResponseError,
                  [400, 401, 403].contains(refused.responseCode) else { return .proceed }
            self?.refused("status \(refused.responseCode)")
            return .shutdown
        }
        source = EventSource(config: config)
        source?.start()
    }

    func stop() {
        stops += 1
        source?.stop()
        source = nil
    }

    // The same call can never succeed; with another token it may. Before such an end the service sends `retry: 300000`,
    // which the library heeds: hence a new source.
    private func refused(_ why: String) {
        let again = token() != used
        DispatchQueue.main.async {
            guard self.source != nil else { return }
            self.stop()
            guard again else { return self.ended(why) }
            let stops = self.stops
            DispatchQueue.main.asyncAfter(deadline: .now() + .random(in: 1...5)) {
                if stops == self.stops { self.start() }
            }
        }
    }

    func onOpened() {}
    func onClosed() {}
    func onComment(comment: String) {}
    func onError(error: Error) {}

    func onMessage(eventType: String, messageEvent: MessageEvent) {
        struct Ready: Decodable { let resume: String }
        struct Ending: Decodable { let code: String; let retry: Bool }
        let decoder = JSONDecoder()
        let data = Data(messageEvent.data.utf8)
        switch eventType {
        case "message":
            if let event = try? decoder.decode(PushEvent.self, from: data), seen.insert(event.id).inserted {
                show(event, data)
            }
        case "ready":
            if let ready = try? decoder.decode(Ready.self, from: data), ready.resume == "gap" {
                gap()
            }
        case "exception":
            if let ending = try? decoder.decode(Ending.self, from: data), !ending.retry {
                refused(ending.code)
            }
        default:
            break
        }
        // Only after the event was handled: an event that wasn't handled is sent again.
        if !messageEvent.lastEventId.isEmpty {
            defaults.set(messageEvent.lastEventId, forKey: Self.lastIdKey)
        }
    }
}
