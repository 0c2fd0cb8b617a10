// A person's stream with okhttp-sse (com.squareup.okhttp3:okhttp-sse:5.5.1), on Android and any other JVM.
// okhttp-sse neither reconnects nor watches for silence as a stream needs it; this class does.

import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.Response
import okhttp3.sse.EventSource
import okhttp3.sse.EventSourceListener
import okhttp3.sse.EventSources
import org.json.JSONObject

/** Where the position is kept, also while the app doesn't run. */
interface Store {
    var lastId: String?
}

/** Is called on the stream's own thread. */
interface PushListener {
    /** An event: a person's (`message`, which has its type in `type`), or one of the service's own, such as `ack`. */
    fun hear(event: String, data: JSONObject)

    /** Events were missed that the service no longer has: reload what is shown. */
    fun gap()

    /** The stream has ended for good: sign in again, then call start(). */
    fun ended(why: String)
}

class PushStream(
    private val url: String, // https://…/v1/stream?named=0
    private val token: () -> String, // asked before each connection; may block
    private val store: Store,
    private val listener: PushListener,
) {
    private val http = OkHttpClient()
    private val own = Executors.newSingleThreadScheduledExecutor { Thread(it, "push").apply { isDaemon = true } }
    private val seen = LinkedHashSet<String>()
    private var source: EventSource? = null
    private var used = ""
    private var heartbeatS = 15.0
    private var failures = 0
    private var runs = 0 // a wait of an earlier start() opens nothing
    private var stopped = true

    fun start() = own.execute {
        if (!stopped) return@execute
        stopped = false
        failures = 0
        open(++runs)
    }

    fun stop() = own.execute(::close)

    private fun close() {
        stopped = true
        source?.cancel()
        source = null
    }

    private fun open(run: Int) {
        if (stopped || source != null || run != runs) return
        used = token()
        val request = Request.Builder().url(url)
        if (used.isNotEmpty()) request.header("Authorization", "Bearer $used")
        store.lastId?.let { request.header("Last-Event-ID", it) }
        // Watches for silence: after three heartbeats without a byte the connection is dead, and okhttp ends it. The
        // default of 10 s would end every quiet stream.
        val watched = http.newBuilder().readTimeout((3000 * heartbeatS).toLong(), TimeUnit.MILLISECONDS).build()
        source = EventSources.createFactory(watched).newEventSource(request.build(), Listener())
    }

    private fun again() {
        source?.cancel()
        source = null
        if (stopped) return
        val ceilingMs = minOf(60_000L, 3_000L shl minOf(failures++, 5))
        val run = runs
        own.schedule({ open(run) }, ceilingMs / 2 + Random.nextLong(ceilingMs / 2), TimeUnit.MILLISECONDS)
    }

    // The same call can never succeed; with another token it may.
    private fun refused(why: String) {
        if (token() != used) return again()
        close()
        listener.ended(why)
    }

    private inner class Listener : EventSourceListener() {
        private fun ours(eventSource: EventSource, act: () -> Unit) = own.execute { if (eventSource === source) act() }

        override fun onEvent(eventSource: EventSource, id: String?, type: String?, data: String) =
            ours(eventSource) { hear(id, type ?: "message", JSONObject(data)) }

        override fun onClosed(eventSource: EventSource) = ours(eventSource, ::again)

        override fun onFailure(eventSource: EventSource, t: Throwable?, response: Response?) {
            val status = response?.code
            ours(eventSource) { if (status in listOf(400, 401, 403)) refused("status $status") else again() }
        }
    }

    private fun hear(id: String?, event: String, data: JSONObject) {
        if (event == "ready") {
            failures = 0
            heartbeatS = data.optDouble("heartbeat_s", 15.0)
            if (data.optString("resume") == "gap") listener.gap()
        }
        // An event's id is the same in every replay.
        if (event != "message" || seen.add(data.getString("id"))) listener.hear(event, data)
        if (seen.size > 1000) seen.remove(seen.first())
        // Only after the event was handled: an event that wasn't handled is sent again.
        if (id != null) store.lastId = id
        if (event == "exception" && !data.optBoolean("retry", true)) refused(data.optString("code"))
    }
}
