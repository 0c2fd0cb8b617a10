// LaunchDarkly's okhttp-eventsource with a header, and nothing around it.

import com.launchdarkly.eventsource.ConnectStrategy
import com.launchdarkly.eventsource.EventSource
import com.launchdarkly.eventsource.MessageEvent
import com.launchdarkly.eventsource.background.BackgroundEventHandler
import com.launchdarkly.eventsource.background.BackgroundEventSource
import java.io.File
import java.net.URI
import java.util.concurrent.CountDownLatch
import org.json.JSONObject

fun main(arguments: Array<String>) {
    val token = File(System.getenv("PUSHSSE_TOKEN_FILE")).readText()
    val how = ConnectStrategy.http(URI(arguments[0])).header("Authorization", "Bearer $token")
    val handler = object : BackgroundEventHandler {
        override fun onMessage(event: String, messageEvent: MessageEvent) =
            println(JSONObject().put("event", event).put("data", JSONObject(messageEvent.data)))

        override fun onError(t: Throwable) = System.err.println(t)

        override fun onOpen() {}

        override fun onClosed() {}

        override fun onComment(comment: String) {}
    }
    BackgroundEventSource.Builder(handler, EventSource.Builder(how)).build().start()
    CountDownLatch(1).await()
}
