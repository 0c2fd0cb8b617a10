// LaunchDarkly's okhttp-eventsource (com.launchdarkly:okhttp-eventsource:4.3.0), which reconnects and resumes by itself.

import com.launchdarkly.eventsource.ConnectStrategy
import com.launchdarkly.eventsource.ErrorStrategy
import com.launchdarkly.eventsource.EventSource
import com.launchdarkly.eventsource.FaultEvent
import com.launchdarkly.eventsource.MessageEvent
import com.launchdarkly.eventsource.StreamHttpErrorException
import java.io.File
import java.net.URI
import java.util.concurrent.TimeUnit
import kotlin.system.exitProcess
import org.json.JSONObject

class Push(private val url: String, private val token: () -> String) {
    private val seen = LinkedHashSet<String>()
    private var lastId: String? = null
    private var heartbeatS = 15.0
    private var used = ""

    /** Listens until there has to be a new source; returns why, if the service doesn't want this token any more. */
    private fun listen(): String? {
        val how = ConnectStrategy.http(URI(url))
            // Called for each connection, also when the library reconnects by itself: the token is always the newest.
            .requestTransformer { request ->
                used = token()
                request.newBuilder().header("Authorization", "Bearer $used").build()
            }
            // Watches for silence: three heartbeats. The default of 5 s would end every quiet stream.
            .readTimeout((3000 * heartbeatS).toLong(), TimeUnit.MILLISECONDS)
        val watched = heartbeatS
        EventSource.Builder(how).errorStrategy(ErrorStrategy.alwaysContinue()).lastEventId(lastId).build().use { source ->
            for (event in source.anyEvents()) {
                val refused = when (event) {
                    is MessageEvent -> hear(event)
                    is FaultEvent -> (event.cause as? StreamHttpErrorException)?.takeIf { it.code in REFUSALS }?.let { "status ${it.code}" }
                    else -> null
                }
                // The read timeout is the source's: another heartbeat needs another one.
                if (refused != null || heartbeatS != watched) return refused
            }
        }
        return null
    }

    private fun hear(event: MessageEvent): String? {
        val data = JSONObject(event.data)
        if (event.eventName == "ready") {
            heartbeatS = data.optDouble("heartbeat_s", 15.0)
            if (data.optString("resume") == "gap") System.err.println("some events were missed: reload what you show")
        }
        if (event.eventName != "message" || seen.add(data.getString("id"))) {
            println(JSONObject().put("event", event.eventName).put("data", data))
        }
        if (seen.size > 1000) seen.remove(seen.first())
        lastId = event.lastEventId
        // Before such an end the service sends `retry: 300000`, which the library would heed: hence a new EventSource.
        return if (event.eventName == "exception" && !data.optBoolean("retry", true)) data.optString("code") else null
    }

    fun run() {
        while (true) {
            val why = listen() ?: continue
            // The same call can never succeed; with another token it may.
            if (token() == used) {
                System.err.println("the stream has ended: $why")
                exitProcess(1)
            }
            Thread.sleep((1000L..5000L).random())
        }
    }

    private companion object {
        val REFUSALS = listOf(400, 401, 403)
    }
}

fun main(arguments: Array<String>) = Push(arguments[0]) { File(System.getenv("PUSHSSE_TOKEN_FILE")).readText().trim() }.run()
