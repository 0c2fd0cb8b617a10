// okhttp-sse with a header, and nothing around it.

import java.io.File
import java.util.concurrent.CountDownLatch
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.sse.EventSource
import okhttp3.sse.EventSourceListener
import okhttp3.sse.EventSources
import org.json.JSONObject

fun main(arguments: Array<String>) {
    val token = File(System.getenv("PUSHSSE_TOKEN_FILE")).readText()
    val request = Request.Builder().url(arguments[0]).header("Authorization", "Bearer $token").build()
    EventSources.createFactory(OkHttpClient()).newEventSource(request, object : EventSourceListener() {
        override fun onEvent(eventSource: EventSource, id: String?, type: String?, data: String) =
            println(JSONObject().put("event", type).put("data", JSONObject(data)))
    })
    CountDownLatch(1).await()
}
