// tmaxmax/go-sse with a header, and nothing around it.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/tmaxmax/go-sse"
)

func main() {
	token, _ := os.ReadFile(os.Getenv("PUSHSSE_TOKEN_FILE"))
	request, _ := http.NewRequest("GET", os.Args[1], nil)
	request.Header.Set("Authorization", "Bearer "+string(token))
	connection := sse.NewConnection(request)
	connection.SubscribeToAll(func(event sse.Event) {
		line, _ := json.Marshal(map[string]any{"event": event.Type, "data": json.RawMessage(event.Data)})
		fmt.Println(string(line))
	})
	fmt.Fprintln(os.Stderr, connection.Connect())
}
