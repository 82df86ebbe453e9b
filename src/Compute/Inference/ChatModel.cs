using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.Tokenization;
using Megatron.Compute.Transformer;
using static TorchSharp.torch;

namespace Megatron.Compute.Inference;

/// <summary>
/// A model that answers conversations: weights, tokenizer, template and the settings of <c>megatron infer</c>. Lives on one thread; libtorch
/// must be loaded before.
/// </summary>
public sealed class ChatModel : IDisposable
{
    private readonly TrainingConfig config;
    private readonly GptModel model;
    private readonly ParallelState parallel;
    private readonly ConversationEncoder encoder;
    private readonly TextGenerator generator;
    private readonly SamplingOptions sampling;
    private readonly int? maxNewTokens;
    private readonly Action<string> notice;
    private bool hasToldOfClipping;

    /// <summary>The model folder.</summary>
    public string Folder { get; }

    /// <summary>The template, bound to the tokenizer.</summary>
    public ChatTemplate Template => encoder.Template;

    private PromptOptions PromptOptions => new(config.System, config.ResponsePrefix, config.EnableThinking);

    private ChatModel(TrainingConfig config, string folder, GptModel model, ParallelState parallel, Action<string> notice)
    {
        (this.config, Folder, this.model, this.parallel, this.notice) = (config, folder, model, parallel, notice);
        var tokenizer = HfTokenizer.Load(config.Tokenizer ?? folder);
        var template = config.Template is { } name
            ? ChatTemplates.Get(name)
            : ChatTemplates.ForModel(model.Config.Architecture, model.Config.ModelType, Path.GetFileName(folder), tokenizer);
        encoder = new ConversationEncoder(tokenizer, template.WithAgentTemplate(config.AgentTemplate), new RenderOptions(config.System, LossScale.Default), config.DateString);
        var defaults = GenerationDefaults.Read(folder);
        sampling = defaults.With(config);
        maxNewTokens = config.MaxNewTokens ?? defaults.MaxNewTokens;
        generator = new TextGenerator(model, tokenizer, StopRules.Of(tokenizer, encoder.Template, defaults.EosIds, config.StopWords), config.Seed);
    }

    /// <summary>Loads the weights of <paramref name="folder"/> on the CPU in the dtype asked for, else in their own.</summary>
    /// <param name="config">Resolved options: template and system prompt from the args.json chain where the user gave none.</param>
    /// <param name="folder">A folder that <see cref="ModelSource.Find"/> named.</param>
    /// <param name="notice">Gets one sentence when an answer can have fewer tokens than asked for.</param>
    /// <exception cref="ConfigException">The folder, the tokenizer or an option cannot be used.</exception>
    public static ChatModel Load(TrainingConfig config, string folder, Action<string> notice) =>
        Load(config, folder, model => ModelWeights.Load(model, folder), notice);

    /// <summary>The same with weights that lie elsewhere, checked against the architecture before.</summary>
    public static ChatModel Load(TrainingConfig config, string folder, IWeightSource weights, Action<string> notice) =>
        Load(config, folder, model => ModelWeights.Load(model, weights), notice);

    private static ChatModel Load(TrainingConfig config, string folder, Action<GptModel> fill, Action<string> notice)
    {
        var hf = HfConfigReader.ReadFolder(folder);
        var options = new ModelOptions
        {
            Dtype = Dtype(config.TorchDtype ?? hf.Dtype),
            Device = CPU,
            Seed = config.Seed,
            Recompute = RecomputeOptions.Off,
            Attention = new AttentionOptions { Backend = AttentionBackend.Auto, SoftmaxInFp32 = true, QueryKeyLayerScaling = false },
            Moe = MoeOptions.Plain,
        };
        var parallel = ParallelState.SingleRank();
        GptModel? model = null;
        try
        {
            model = new GptModel(hf.Model, options, parallel, StageLayout.Whole(hf.Model));
            fill(model);
            return new ChatModel(config, folder, model, parallel, notice);
        }
        catch
        {
            model?.Dispose();
            parallel.Dispose();
            throw;
        }
    }

    /// <summary>Answers to conversations, in one batch; each goes on after its last message.</summary>
    /// <param name="conversations">At least one.</param>
    /// <param name="firstSequence">Number of the first conversation among all that are answered, a coordinate of the random numbers.</param>
    /// <param name="onText">Gets (index, next piece of text) while tokens come; null when nobody listens.</param>
    /// <param name="cancellationToken">Ends every answer where it stands.</param>
    /// <exception cref="ConfigException">A conversation does not fit the template or leaves no room for an answer.</exception>
    public IReadOnlyList<GenerationResult> Answer(
        IReadOnlyList<Conversation> conversations, long firstSequence, Action<int, string>? onText, CancellationToken cancellationToken) =>
        generator.Generate([.. conversations.Select((conversation, i) => Request(conversation, firstSequence + i))], onText, cancellationToken);

    /// <summary>Token ids of the prompt that asks for an answer to a conversation.</summary>
    /// <exception cref="ConfigException">The conversation does not fit the template.</exception>
    public int[] EncodePrompt(Conversation conversation) => encoder.EncodePrompt(conversation, PromptOptions);

    /// <summary>Logits behind every token of a text: [T, V] in fp32, in the dispose scope that is open.</summary>
    /// <exception cref="ConfigException">MODEL022: the text is empty or longer than the model's positions.</exception>
    public Tensor Logits(int[] ids) => generator.Logits(ids);

    /// <inheritdoc/>
    public void Dispose()
    {
        model.Dispose();
        parallel.Dispose();
    }

    private GenerationRequest Request(Conversation conversation, long sequence)
    {
        var goesOn = conversation.Messages[^1].Role == ChatMessage.Assistant;
        var promptIds = EncodePrompt(conversation);
        TellOfClipping(promptIds.Length);
        return new GenerationRequest
        {
            PromptIds = promptIds,
            Sampling = sampling,
            MaxNewTokens = maxNewTokens ?? int.MaxValue,
            Sequence = sequence,
            Beginning = goesOn ? "" : TemplateRenderer.BeginningOfAnswer(Template, PromptOptions),
        };
    }

    /// <summary>Once: the limit is a wish of the user or of the model folder that a long prompt leaves no room for.</summary>
    private void TellOfClipping(int promptLength)
    {
        var room = model.Config.MaxPositionEmbeddings - promptLength;
        if (hasToldOfClipping || room <= 0 || maxNewTokens is not { } wish || wish <= room) return;
        hasToldOfClipping = true;
        notice(FormattableString.Invariant($"max_new_tokens = {wish} is more than the {room} positions that the model has left behind a prompt of {promptLength} tokens; answers end there."));
    }

    private static ScalarType Dtype(string? name) => name switch
    {
        "bfloat16" => bfloat16,
        "float16" => float16,
        _ => float32,
    };
}
