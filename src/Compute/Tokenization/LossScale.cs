namespace Megatron.Compute.Tokenization;

/// <summary>Which tokens of a conversation are learned (option <c>loss_scale</c>).</summary>
public enum LossScale
{
    /// <summary>Every answer and the end marker after it.</summary>
    Default,

    /// <summary>The last answer and the suffix only.</summary>
    LastRound,

    /// <summary>Every token, prompts and BOS included; the rule of pre-training.</summary>
    All,

    /// <summary>As <see cref="Default"/>, but an empty think block in an answer is not learned.</summary>
    IgnoreEmptyThink,
}
