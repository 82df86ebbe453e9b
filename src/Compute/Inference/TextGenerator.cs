using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Tokenization;
using static TorchSharp.torch;

namespace Megatron.Compute.Inference;

/// <summary>
/// Goes on with texts, several at a time: one pass over all prompts, then one token of each unfinished sequence per pass, with the keys and
/// values of earlier tokens in a <see cref="KvCache"/> per sequence. The whole model on one device. Not thread-safe.
/// </summary>
public sealed class TextGenerator
{
    private readonly GptModel model;
    private readonly ITokenizer tokenizer;
    private readonly StopRules stops;
    private readonly int seed;

    /// <param name="model">Whole model on one rank.</param>
    /// <param name="tokenizer">Decodes.</param>
    /// <param name="stops">What ends an answer.</param>
    /// <param name="seed">Seed of sampling.</param>
    public TextGenerator(GptModel model, ITokenizer tokenizer, StopRules stops, int seed) =>
        (this.model, this.tokenizer, this.stops, this.seed) = (model, tokenizer, stops, seed);

    /// <summary>Answers in the order of the requests. A request's answer does not depend on the others.</summary>
    /// <param name="requests">At least one.</param>
    /// <param name="onText">Gets (index of the request, next piece of text) while tokens come; null when nobody listens.</param>
    /// <param name="cancellationToken">Ends every answer where it stands.</param>
    /// <exception cref="ConfigException">MODEL022: a prompt leaves no position for an answer; MODEL010: the model computes NaN.</exception>
    public IReadOnlyList<GenerationResult> Generate(
        IReadOnlyList<GenerationRequest> requests, Action<int, string>? onText, CancellationToken cancellationToken)
    {
        foreach (var request in requests) RequireRoom(request.PromptIds.Length);
        var sequences = new List<Sequence>();
        try
        {
            for (var i = 0; i < requests.Count; i++) sequences.Add(Begin(requests[i], i, onText));
            var active = sequences.ToArray();
            while (active.Length > 0 && !cancellationToken.IsCancellationRequested)
            {
                Step(active);
                active = Array.FindAll(active, sequence => !sequence.IsFinished);
            }
            return [.. sequences.Select(sequence => sequence.ToResult())];
        }
        finally
        {
            foreach (var sequence in sequences) sequence.Dispose();
        }
    }

    /// <summary>Logits behind every token of a text, without a cache: [T, V] in fp32 on the CPU, in the dispose scope that is open.</summary>
    /// <exception cref="ConfigException">MODEL022: the text is empty or longer than the model's positions.</exception>
    public Tensor Logits(int[] ids)
    {
        RequireRoom(ids.Length);
        using var scope = NewDisposeScope();
        using var cache = new KvCache(model.Config.NumLayers, model.Config.MaxPositionEmbeddings);
        using var context = new ForwardContext(
            new CachedRow([cache], [ids]).ToMicroBatch(), model.Options.Device, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0);
        return model.ForwardLogits(null, new Saved(context)).to(ScalarType.Float32, CPU).MoveToOuterDisposeScope();
    }

    /// <summary>One forward pass and one more token for each sequence.</summary>
    private void Step(Sequence[] active)
    {
        using var scope = NewDisposeScope();
        var row = new CachedRow(Array.ConvertAll(active, sequence => sequence.Cache), Array.ConvertAll(active, sequence => sequence.NewTokens));
        using var context = new ForwardContext(
            row.ToMicroBatch(), model.Options.Device, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0) { AttentionCache = row };
        var logits_SV = model.ForwardLastLogits(new Saved(context)).to(ScalarType.Float32, CPU);
        row.Advance();
        var values = logits_SV.data<float>().ToArray();
        var vocabulary = (int)logits_SV.shape[1];
        for (var i = 0; i < active.Length; i++) active[i].Add(values.AsSpan(i * vocabulary, vocabulary), stops);
    }

    private Sequence Begin(GenerationRequest request, int index, Action<int, string>? onText)
    {
        var sampler = new Sampler(request.Sampling, seed, request.Sequence);
        sampler.Observe(request.PromptIds);
        return new Sequence
        {
            Cache = new KvCache(model.Config.NumLayers, model.Config.MaxPositionEmbeddings),
            Sampler = sampler,
            Text = new AnswerText(tokenizer, stops, request.Beginning, onText is null ? null : text => onText(index, text)),
            NewTokens = request.PromptIds,
            NumPromptTokens = request.PromptIds.Length,
            NumTokensMax = Math.Min(request.MaxNewTokens, model.Config.MaxPositionEmbeddings - request.PromptIds.Length),
        };
    }

    private void RequireRoom(int promptLength)
    {
        var positions = model.Config.MaxPositionEmbeddings;
        if (promptLength == 0) throw new ConfigException("MODEL022", "The prompt is empty; write something to go on with.");
        if (promptLength >= positions)
            throw new ConfigException("MODEL022", $"The prompt has {promptLength} tokens and the model {positions} positions, so there is no room for an answer; shorten it.");
    }

    /// <summary>One text in the making.</summary>
    private sealed class Sequence : IDisposable
    {
        private readonly List<int> answer = [];
        private int numGenerated;
        private FinishReason? finish;

        public required KvCache Cache { get; init; }
        public required Sampler Sampler { get; init; }
        public required AnswerText Text { get; init; }

        /// <summary>Tokens that the model has not seen: the prompt, then the newest token.</summary>
        public required int[] NewTokens { get; set; }

        public required int NumPromptTokens { get; init; }
        public required int NumTokensMax { get; init; }

        public bool IsFinished => finish is not null;

        /// <summary>Chooses the next token from the logits behind the newest one.</summary>
        public void Add(Span<float> logits_V, StopRules stops)
        {
            var id = Sampler.Next(logits_V);
            if (float.IsNaN(logits_V[id])) throw new ConfigException("MODEL010", "The model computes values that are not numbers; get an intact copy of its weights.");
            numGenerated++;
            if (stops.Ids.Contains(id))
            {
                finish = FinishReason.Stop;
                return;
            }
            answer.Add(id);
            Sampler.Observe([id]);
            NewTokens = [id];
            if (Text.Add(id)) finish = FinishReason.Stop;
            else if (numGenerated == NumTokensMax) finish = FinishReason.Length;
        }

        public GenerationResult ToResult() => new(Text.Finish(), answer, NumPromptTokens, numGenerated, finish ?? FinishReason.Stop);

        public void Dispose() => Cache.Dispose();
    }
}
