using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Inference;
using Megatron.Compute.Tokenization;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// <c>export --test_convert_precision</c>: source and result are read from disk again, the two models compute the logits of one short prompt
/// in fp32 and the logits are compared. It shows mistakes of the conversion (a tensor that is missing, transposed or rounded), not of the
/// architecture, which both models share; that is what <see cref="GoldenVerifier"/> is for.
/// </summary>
/// <param name="MeanDifference">Mean |Δ| of all logits.</param>
/// <param name="MaxDifference">Largest |Δ| of all logits.</param>
/// <param name="SourceTokens">Likeliest next token behind each token of the prompt, by the source.</param>
/// <param name="ResultTokens">The same by the result.</param>
public sealed record ConversionPrecision(double MeanDifference, double MaxDifference, IReadOnlyList<long> SourceTokens, IReadOnlyList<long> ResultTokens)
{
    /// <summary>The bound on the mean difference, as the reference has it.</summary>
    public const double MeanDifferenceBound = 0.1;

    private const string Question = "who are you?";

    /// <summary>False for values that are not numbers too.</summary>
    public bool IsPassed => MeanDifference < MeanDifferenceBound && SourceTokens.SequenceEqual(ResultTokens);

    /// <summary>Compares the models; one is in memory at a time. libtorch must be loaded.</summary>
    /// <param name="config">Template and system prompt of the question.</param>
    /// <param name="sourceFolder">Configuration and tokenizer of the source.</param>
    /// <param name="source">The weights that were converted.</param>
    /// <param name="result">The folder that came of it.</param>
    /// <exception cref="ConfigException">A folder cannot be used.</exception>
    public static ConversionPrecision Measure(TrainingConfig config, string sourceFolder, IWeightSource source, string result)
    {
        using var scope = NewDisposeScope();
        config = config with { TorchDtype = "float32" };
        Tensor expected_TV, actual_TV;
        int[] promptIds;
        using (var model = ChatModel.Load(config, sourceFolder, source, _ => { }))
        {
            promptIds = model.EncodePrompt(new Conversation(null, [new ChatMessage(ChatMessage.User, Question)]));
            expected_TV = model.Logits(promptIds);
            config = config with { Template = model.Template.Name }; // the result's folder may have a name that says less
        }
        using (var model = ChatModel.Load(config, result, _ => { })) actual_TV = model.Logits(promptIds);
        var difference_TV = (actual_TV - expected_TV).abs();
        return new ConversionPrecision(
            difference_TV.mean().item<float>(), difference_TV.max().item<float>(), expected_TV.argmax(1).data<long>().ToArray(), actual_TV.argmax(1).data<long>().ToArray());
    }
}

/// <summary>The converted model computes something else than its source: nothing was written.</summary>
public sealed class ConversionException(string message) : Exception(message);
