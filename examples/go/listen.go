// A person's stream in Go, with tmaxmax/go-sse: prints each event as a line of JSON.
//
//	go run . "http://127.0.0.1:8000/v1/stream?user=ann"
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

	"github.com/tmaxmax/go-sse"
)

const (
	remembered = 1000
	mostWait   = time.Minute
)

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
	url       string
	transport *http.Transport
	lastID    string
	silence   time.Duration
	failures  int
	seen      map[string]bool
	order     []string
	refused   string
}

// The JWT: from a file that is renewed (PUSHSSE_TOKEN_FILE), or from PUSHSSE_TOKEN.
func token() string {
	if file := os.Getenv("PUSHSSE_TOKEN_FILE"); file != "" {
		read, _ := os.ReadFile(file)
		return strings.TrimSpace(string(read))
	}
	return os.Getenv("PUSHSSE_TOKEN")
}

// One connection, to its end.
func (s *stream) one(used string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The service sends something at least once a heartbeat. After three silent ones the connection is dead.
	watch := time.AfterFunc(s.silence, cancel)
	defer watch.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return err
	}
	if used != "" {
		request.Header.Set("Authorization", "Bearer "+used)
	}
	if s.lastID != "" {
		request.Header.Set("Last-Event-ID", s.lastID)
	}
	client := sse.Client{
		HTTPClient: &http.Client{Transport: s.transport},
		// It would repeat its request, with the old token.
		Backoff: sse.Backoff{MaxRetries: -1},
		ResponseValidator: func(response *http.Response) error {
			switch response.StatusCode {
			case 400, 401, 403:
				s.refused = response.Status
			}
			return sse.DefaultValidator(response)
		},
	}
	connection := client.NewConnection(request)
	connection.SubscribeToAll(func(event sse.Event) {
		watch.Reset(s.silence)
		s.hear(event, cancel)
		// Only after the event was handled: an event that wasn't handled is sent again.
		s.lastID = event.LastEventID
	})
	err = connection.Connect()
	// Over HTTP/2 the next stream would go into the connection that has died.
	s.transport.CloseIdleConnections()
	return err
}

func (s *stream) hear(event sse.Event, cancel func()) {
	var said content
	if json.Unmarshal([]byte(event.Data), &said) != nil {
		return
	}
	switch {
	case event.Type == "ready":
		s.failures = 0
		s.silence = time.Duration(3 * said.HeartbeatS * float64(time.Second))
		if said.Resume == "gap" {
			fmt.Fprintln(os.Stderr, "some events were missed: reload what you show")
		}
	case event.Type == "exception" && said.Retry != nil && !*said.Retry:
		s.refused = said.Code
		cancel()
	}
	if said.Message == nil || s.isNew(said.ID) {
		line, _ := json.Marshal(map[string]any{"event": event.Type, "data": json.RawMessage(event.Data)})
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
	url := "http://127.0.0.1:8000/v1/stream?user=ann"
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	s := &stream{
		url:       url,
		transport: http.DefaultTransport.(*http.Transport).Clone(),
		silence:   45 * time.Second,
		seen:      map[string]bool{},
	}
	for {
		used := token()
		s.refused = ""
		err := s.one(used)
		// The same call can never succeed; with another token it may.
		if s.refused != "" && token() == used {
			fmt.Fprintln(os.Stderr, "the stream has ended:", s.refused)
			os.Exit(1)
		}
		wait := min(mostWait, 3*time.Second<<min(s.failures, 5))
		s.failures++
		fmt.Fprintf(os.Stderr, "%v: reconnecting\n", err)
		time.Sleep(wait/2 + time.Duration(rand.Int63n(int64(wait))))
	}
}
