// PushStream in an Android app: call start() in onStart and stop() in onStop. In the background there is no stream;
// `position` is where the app goes on, with start(), or with one GET /v1/events?after=position in a WorkManager job.

import android.content.SharedPreferences
import android.os.Handler
import android.os.Looper
import org.json.JSONObject

class AndroidPush(
    url: String,
    token: () -> String,
    private val preferences: SharedPreferences,
    private val listener: PushListener, // is called on the main thread
) {
    private val main = Handler(Looper.getMainLooper())
    private val store = object : Store {
        override var lastId: String?
            get() = preferences.getString(LAST_ID, null)
            set(value) = preferences.edit().putString(LAST_ID, value).apply()
    }
    private val stream = PushStream(url, token, store, object : PushListener {
        override fun hear(event: String, data: JSONObject) = post { listener.hear(event, data) }

        override fun gap() = post { listener.gap() }

        override fun ended(why: String) = post { listener.ended(why) }
    })

    val position get() = store.lastId

    fun start() = stream.start()

    fun stop() = stream.stop()

    private fun post(act: () -> Unit) {
        main.post(act)
    }

    private companion object {
        const val LAST_ID = "pushsse.last-event-id"
    }
}
