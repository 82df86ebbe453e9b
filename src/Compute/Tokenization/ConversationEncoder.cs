namespace Megatron.Compute.Tokenization;

/// <summary>
/// Conversations to token ids with loss weights, for one tokenizer, template and setting. Immutable; may be shared by threads.
/// </summary>
public sealed class ConversationEncoder
{
    private readonly ITokenizer _tokenizer;
    private readonly RenderOptions _options;
    private readonly int[] _suffixIds;

    /// <summary>The template with the tokenizer's tokens and the date filled in.</summary>
    public ChatTemplate Template { get; }

    /// <param name="tokenizer">Makes the ids.</param>
    /// <param name="template">Unbound template from <see cref="ChatTemplates"/>.</param>
    /// <param name="options">System prompt setting and loss scale.</param>
    /// <param name="date">Text for templates with a date; <see cref="ChatTemplate.DefaultDate"/> unless the user gives one.</param>
    public ConversationEncoder(ITokenizer tokenizer, ChatTemplate template, RenderOptions options, string date)
    {
        _tokenizer = tokenizer;
        _options = options;
        Template = template.Bind(tokenizer, date);
        _suffixIds = tokenizer.Encode(Template.Suffix);
    }

    /// <summary>
    /// Training row. Each piece is tokenized on its own; then the end marker after each learned answer is learned as well, although
    /// the separator that it belongs to is not. Throws what <see cref="TemplateRenderer.Render"/> throws.
    /// </summary>
    public EncodedText Encode(Conversation conversation)
    {
        var pieces = TemplateRenderer.Render(Template, conversation, _options);
        var ids = new List<int>();
        var weights = new List<float>();
        foreach (var piece in pieces)
        {
            ids.AddRange(_tokenizer.Encode(piece.Text));
            while (weights.Count < ids.Count)
                weights.Add(piece.Weight);
        }

        LearnEndMarkers(ids, weights);
        return new EncodedText([.. ids], [.. weights]);
    }

    /// <summary>
    /// Ids of a prompt for inference, cut into the same pieces as in training. The system prompt setting is that of <paramref
    /// name="options"/>.
    /// </summary>
    public int[] EncodePrompt(Conversation conversation, PromptOptions options)
    {
        var ids = new List<int>();
        foreach (var piece in TemplateRenderer.RenderPrompt(Template, conversation, options))
            ids.AddRange(_tokenizer.Encode(piece.Text));
        return [.. ids];
    }

    /// <summary>
    /// Where a masked stretch follows a learned one and starts with the suffix tokens, these get the weight of the stretch before.
    /// </summary>
    private void LearnEndMarkers(List<int> ids, List<float> weights)
    {
        if (_suffixIds.Length == 0)
            return;
        for (var start = 1; start + _suffixIds.Length <= ids.Count; start++)
        {
            if (weights[start] != 0f || weights[start - 1] == 0f || !IsSuffixAt(start))
                continue;
            var weight = weights[start - 1];
            for (var i = 0; i < _suffixIds.Length; i++)
                weights[start + i] = weight;

            // The separator may repeat the marker; only the first one belongs to the answer.
            start += _suffixIds.Length;
        }

        bool IsSuffixAt(int start)
        {
            for (var i = 0; i < _suffixIds.Length; i++)
            {
                if (ids[start + i] != _suffixIds[i] || weights[start + i] != 0f)
                    return false;
            }

            return true;
        }
    }
}
