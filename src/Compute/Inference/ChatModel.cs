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
    private readonly int? defaultMaxNewTokens;

    /// <summary>The model folder.</summary>
    public string Folder { get; }

    /// <summary>The template, bound to the tokenizer.</summary>
    public ChatTemplate Template => encoder.Template;

    private ChatModel(TrainingConfig config, string folder, GptModel model, ParallelState parallel)
    {
        (this.config, Folder, this.model, this.parallel) = (config, folder, model, parallel);
        var tokenizer = HfTokenizer.Load(config.Tokenizer ?? folder);
        var template = config.Template is { } name
            ? ChatTemplates.Get(name)
            : ChatTemplates.ForModel(model.Config.Architecture, model.Config.ModelType, Path.GetFileName(folder), tokenizer);
        encoder = new ConversationEncoder(tokenizer, template.WithAgentTemplate(config.AgentTemplate), new RenderOptions(config.System, LossScale.Default), config.DateString);
        var defaults = GenerationDefaults.Read(folder);
        sampling = defaults.With(config);
        defaultMaxNewTokens = defaults.MaxNewTokens;
        generator = new TextGenerator(model, tokenizer, StopRules.Of(tokenizer, encoder.Template, defaults.EosIds, config.StopWords), config.Seed);
    }

    /// <summary>Loads the weights of <paramref name="folder"/> on the CPU in the dtype asked for, else in their own.</summary>
    /// <param name="config">Resolved options: template and system prompt from the args.json chain where the user gave none.</param>
    /// <param name="folder">A folder that <see cref="ModelSource.Find"/> named.</param>
    /// <exception cref="ConfigException">The folder, the tokenizer or an option cannot be used.</exception>
    public static ChatModel Load(TrainingConfig config, string folder)
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
            ModelWeights.Load(model, folder);
            return new ChatModel(config, folder, model, parallel);
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

    /// <inheritdoc/>
    public void Dispose()
    {
        model.Dispose();
        parallel.Dispose();
    }

    private GenerationRequest Request(Conversation conversation, long sequence)
    {
        var options = new PromptOptions(config.System, config.ResponsePrefix, config.EnableThinking);
        var goesOn = conversation.Messages[^1].Role == ChatMessage.Assistant;
        return new GenerationRequest
        {
            PromptIds = encoder.EncodePrompt(conversation, options),
            Sampling = sampling,
            MaxNewTokens = config.MaxNewTokens ?? defaultMaxNewTokens ?? int.MaxValue,
            Sequence = sequence,
            Beginning = goesOn ? "" : TemplateRenderer.BeginningOfAnswer(Template, options),
        };
    }

    private static ScalarType Dtype(string? name) => name switch
    {
        "bfloat16" => bfloat16,
        "float16" => float16,
        _ => float32,
    };
}
