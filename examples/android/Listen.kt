// PushStream on the command line: prints each event as a line of JSON.

import java.io.File
import java.util.concurrent.CountDownLatch
import kotlin.system.exitProcess
import org.json.JSONObject

fun main(arguments: Array<String>) {
    val file = System.getenv("PUSHSSE_TOKEN_FILE")
    val token = { if (file != null) File(file).readText().trim() else System.getenv("PUSHSSE_TOKEN").orEmpty() }
    val kept = object : Store {
        override var lastId: String? = null
    }
    val listener = object : PushListener {
        override fun hear(event: String, data: JSONObject) =
            println(JSONObject().put("event", event).put("data", data))

        override fun gap() = System.err.println("some events were missed: reload what you show")

        override fun ended(why: String) {
            System.err.println("the stream has ended: $why")
            exitProcess(1)
        }
    }
    PushStream(arguments[0], token, kept, listener).start()
    CountDownLatch(1).await()
}
