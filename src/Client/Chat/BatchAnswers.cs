using System.Globalization;
using Megatron.Compute.Inference;
using Megatron.Compute.Tokenization;

namespace Megatron.Client.Chat;

/// <summary>
/// The batch mode of <c>megatron infer</c>: every row of a data set is answered; an answer in the row becomes <c>labels</c>. Rows are answered
/// <c>max_batch_size</c> at a time, one at a time with <c>--stream</c>; the answers are the same.
/// </summary>
/// <param name="model">The model.</param>
/// <param name="output">Console.</param>
/// <param name="results">Result file.</param>
/// <param name="time">Clock of the statistics.</param>
public sealed class BatchAnswers(ChatModel model, TextWriter output, ResultFile results, TimeProvider time)
{
    private int numPromptTokens;
    private int numGeneratedTokens;
    private int numRight;

    /// <summary>Answers all rows.</summary>
    /// <param name="rows">Conversations, with or without an answer.</param>
    /// <param name="batchSize">Rows at a time.</param>
    /// <param name="stream">Show questions and answers while they come.</param>
    /// <param name="cancellationToken">Ends the run after the batch at hand.</param>
    public void Run(IReadOnlyList<Conversation> rows, int batchSize, bool stream, CancellationToken cancellationToken)
    {
        var start = time.GetTimestamp();
        var done = 0;
        foreach (var batch in rows.Chunk(stream ? 1 : batchSize))
        {
            if (cancellationToken.IsCancellationRequested) break;
            AnswerBatch(batch, done, stream, cancellationToken);
            done += batch.Length;
        }
        WriteStatistics(done, time.GetElapsedTime(start).TotalSeconds);
    }

    /// <summary>Share of answers equal to their labels, in one line; rows without labels count as wrong.</summary>
    public void WriteAccuracy(int numRows) => output.WriteLine(string.Create(
        CultureInfo.InvariantCulture, $"acc: {(numRows == 0 ? 0 : (double)numRight / numRows):0.######} ({numRight} of {numRows})"));

    private void AnswerBatch(Conversation[] batch, int first, bool stream, CancellationToken cancellationToken)
    {
        var prompts = Array.ConvertAll(batch, SplitAnswer);
        if (stream) output.Write($"[QUERY] {prompts[0].Prompt.Messages[^1].Content}\n[LABELS] {prompts[0].Labels}\n[RESPONSE] ");
        var answers = model.Answer([.. prompts.Select(prompt => prompt.Prompt)], first, stream ? Show : null, cancellationToken);
        if (stream) output.WriteLine("\n" + new string('-', 50));
        for (var i = 0; i < batch.Length; i++)
        {
            numPromptTokens += answers[i].NumPromptTokens;
            numGeneratedTokens += answers[i].NumGeneratedTokens;
            if (prompts[i].Labels is { } labels && labels.Trim() == answers[i].Text.Trim()) numRight++;
            results.Write(prompts[i].Prompt, answers[i].Text, prompts[i].Labels, isBatch: true);
        }

        void Show(int index, string text)
        {
            output.Write(text);
            output.Flush();
        }
    }

    /// <summary>The last message, when it is an answer, is what the model's is compared with.</summary>
    private static (Conversation Prompt, string? Labels) SplitAnswer(Conversation row) =>
        row.Messages.Count > 1 && row.Messages[^1] is { Role: ChatMessage.Assistant } last
            ? (row with { Messages = [.. row.Messages.SkipLast(1)] }, last.Content)
            : (row, null);

    // The keys and the form of the reference, which scripts look for.
    private void WriteStatistics(int numSamples, double seconds) => output.WriteLine(string.Create(CultureInfo.InvariantCulture,
        $"[rank0] {{'num_prompt_tokens': {numPromptTokens}, 'num_generated_tokens': {numGeneratedTokens}, 'num_samples': {numSamples}, " +
        $"'runtime': {seconds:0.###}, 'samples/s': {numSamples / seconds:0.###}, 'tokens/s': {numGeneratedTokens / seconds:0.###}}}"));
}
