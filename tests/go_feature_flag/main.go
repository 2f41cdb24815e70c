// Evaluates a flag of a GO Feature Flag file for each targeting key on standard input, and prints
// the variation of each.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	ffclient "github.com/thomaspoignant/go-feature-flag"
	"github.com/thomaspoignant/go-feature-flag/ffcontext"
	"github.com/thomaspoignant/go-feature-flag/retriever/fileretriever"
)

func main() {
	format := "json"
	if len(os.Args) > 3 {
		format = os.Args[3]
	}
	err := ffclient.Init(ffclient.Config{
		PollingInterval: time.Hour,
		Context:         context.Background(),
		FileFormat:      format,
		Retriever:       &fileretriever.Retriever{Path: os.Args[1]},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer ffclient.Close()
	keys := bufio.NewScanner(os.Stdin)
	for keys.Scan() {
		user := ffcontext.NewEvaluationContext(keys.Text())
		detail, err := ffclient.BoolVariationDetails(os.Args[2], user, false)
		fmt.Println(keys.Text(), detail.VariationType, detail.Value, detail.Reason, err)
	}
}
