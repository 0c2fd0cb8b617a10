// A person's stream in an Android app, with okhttp-sse (com.squareup.okhttp3:okhttp-sse:4.12.0).
// Call start() in onStart and stop() in onStop. okhttp-sse doesn't reconnect by itself; this class does.

import android.content.SharedPreferences
import android.os.Handler
import android.os.Looper
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.Response
import okhttp3.sse.EventSource
import okhttp3.sse.EventSourceListener
import okhttp3.sse.EventSources
import org.json.JSONObject

class PushStream(
    private val url: String, // https://…/v1/stream?named=0
    private val token: () -> String,
    private val store: SharedPreferences,
    private val show: (JSONObject) -> Unit,
    private val gap: () -> Unit, // events were missed that the service no longer has: reload what is shown
    private val ended: (String) -> Unit, // the stream ended for good: get a new token, then call start() again
) {
    private val http = OkHttpClient()
    private val main = Handler(Looper.getMainLooper())
    private val seen = LinkedHashSet<String>()
    private var source: EventSource? = null
    private var heartbeatS = 15L
    private var failures = 0
    private var stopped = true

    fun start() {
        stopped = false
        open()
    }

    fun stop() {
        stopped = true
        main.removeCallbacksAndMessages(null)
        source?.cancel()
        source = null
    }

    private fun open() {
        if (stopped || source != null) return
        val request = Request.Builder().url(url).header("Authorization", "Bearer ${token()}")
        store.getString(LAST_ID, null)?.let { request.header("Last-Event-ID", it) }
        // Watches for silence: after three heartbeats without a byte the connection is dead, and okhttp ends it. The
        // default of 10 s would end every quiet stream.
        val watched = http.newBuilder().readTimeout(3 * heartbeatS, TimeUnit.SECONDS).build()
        source = EventSources.createFactory(watched).newEventSource(request.build(), Listener())
    }

    private fun again() {
        source = null
        if (stopped) return
        val ceilingMs = minOf(60_000L, 3_000L shl minOf(failures++, 5))
        main.postDelayed({ open() }, ceilingMs / 2 + Random.nextLong(ceilingMs / 2))
    }

    private fun end(why: String) {
        stop()
        ended(why)
    }

    private inner class Listener : EventSourceListener() {
        override fun onEvent(eventSource: EventSource, id: String?, type: String?, data: String) {
            main.post { if (eventSource === source) hear(id, type, data) }
        }

        override fun onClosed(eventSource: EventSource) {
            main.post { if (eventSource === source) again() }
        }

        override fun onFailure(eventSource: EventSource, t: Throwable?, response: Response?) {
            val status = response?.code
            val refused = status == 400 || status == 401 || status == 403
            main.post { if (eventSource === source) if (refused) end("status $status") else again() }
        }
    }

    private fun hear(id: String?, type: String?, data: String) {
        val json = JSONObject(data)
        when (type) {
            "ready" -> {
                failures = 0
                heartbeatS = json.optLong("heartbeat_s", 15).coerceAtLeast(1)
                if (json.optString("resume") == "gap") gap()
            }
            "exception" -> if (!json.optBoolean("retry", true)) end(json.optString("code"))
            null, "message" -> if (seen.add(json.getString("id"))) show(json)
        }
        if (seen.size > 1000) seen.remove(seen.first())
        // Only after the event was handled: an event that wasn't handled is sent again.
        if (id != null) store.edit().putString(LAST_ID, id).apply()
    }

    private companion object {
        const val LAST_ID = "pushsse.last-event-id"
    }
}
