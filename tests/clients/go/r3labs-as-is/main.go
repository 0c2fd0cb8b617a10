// r3labs/sse with a header, and nothing around it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/r3labs/sse/v2"
)

func main() {
	token, _ := os.ReadFile(os.Getenv("PUSHSSE_TOKEN_FILE"))
	client := sse.NewClient(os.Args[1])
	client.Headers["Authorization"] = "Bearer " + string(token)
	err := client.SubscribeRaw(func(event *sse.Event) {
		line, _ := json.Marshal(map[string]any{"event": string(event.Event), "data": json.RawMessage(event.Data)})
		fmt.Println(string(line))
	})
	fmt.Fprintln(os.Stderr, "ended:", err)
}
