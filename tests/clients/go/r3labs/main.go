// r3labs/sse in a loop: a watch for silence, a fresh token for each connection, and repeats dropped.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/r3labs/sse/v2"
	"gopkg.in/cenkalti/backoff.v1"
)

const remembered = 1000

// What the service says in `ready`, `exception` and events.
type content struct {
	ID         string          `json:"id"`
	Message    json.RawMessage `json:"message"`
	Resume     string          `json:"resume"`
	HeartbeatS float64         `json:"heartbeat_s"`
	Code       string          `json:"code"`
	Retry      *bool           `json:"retry"`
}

type stream struct {
	client   *sse.Client // keeps the last id
	silence  time.Duration
	failures int
	seen     map[string]bool
	order    []string
	refused  string
}

func token() string {
	read, _ := os.ReadFile(os.Getenv("PUSHSSE_TOKEN_FILE"))
	return strings.TrimSpace(string(read))
}

// One connection, to its end.
func (s *stream) one(used string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The service sends something at least once a heartbeat. After three silent ones the connection is dead.
	watch := time.AfterFunc(s.silence, cancel)
	defer watch.Stop()
	s.client.Headers["Authorization"] = "Bearer " + used
	s.client.ResponseValidator = func(_ *sse.Client, response *http.Response) error {
		if response.StatusCode == http.StatusOK {
			return nil
		}
		switch response.StatusCode {
		case 400, 401, 403:
			s.refused = response.Status
		}
		response.Body.Close()
		return fmt.Errorf("status %s", response.Status)
	}
	s.client.SubscribeRawWithContext(ctx, func(event *sse.Event) {
		watch.Reset(s.silence)
		s.hear(string(event.Event), event.Data, cancel)
	})
	// Over HTTP/2 the next stream would go into the connection that has died.
	s.client.Connection.CloseIdleConnections()
}

func (s *stream) hear(event string, data []byte, cancel func()) {
	var said content
	if json.Unmarshal(data, &said) != nil {
		return
	}
	switch {
	case event == "ready":
		s.failures = 0
		s.silence = time.Duration(3 * said.HeartbeatS * float64(time.Second))
		if said.Resume == "gap" {
			fmt.Fprintln(os.Stderr, "some events were missed: reload what you show")
		}
	case event == "exception" && said.Retry != nil && !*said.Retry:
		s.refused = said.Code
		cancel()
	}
	if said.Message == nil || s.isNew(said.ID) {
		line, _ := json.Marshal(map[string]any{"event": event, "data": json.RawMessage(data)})
		fmt.Println(string(line))
	}
}

// The id in the data is the same in every replay.
func (s *stream) isNew(id string) bool {
	if s.seen[id] {
		return false
	}
	s.seen[id] = true
	if s.order = append(s.order, id); len(s.order) > remembered {
		delete(s.seen, s.order[0])
		s.order = s.order[1:]
	}
	return true
}

func main() {
	// A transport of its own, whose connections can be closed.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	client := sse.NewClient(os.Args[1], func(client *sse.Client) {
		client.Connection = &http.Client{Transport: transport}
		// It would repeat its request with the old token. And a clean end, as a restart makes, ends it in any case.
		client.ReconnectStrategy = &backoff.StopBackOff{}
	})
	s := &stream{client: client, silence: 45 * time.Second, seen: map[string]bool{}}
	for {
		used := token()
		s.refused = ""
		s.one(used)
		// The same call can never succeed; with another token it may.
		if s.refused != "" && token() == used {
			fmt.Fprintln(os.Stderr, "the stream has ended:", s.refused)
			os.Exit(1)
		}
		wait := 3 * time.Second << min(s.failures, 4)
		s.failures++
		time.Sleep(wait/2 + time.Duration(rand.Int63n(int64(wait))))
	}
}
