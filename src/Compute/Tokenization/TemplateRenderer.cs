using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// A conversation as text pieces with loss weights. Pure; the template must be bound (<see cref="ChatTemplate.Bind"/>).
/// What is learned: answers and the suffix by the loss scale; markers after earlier answers only as tokens (<see
/// cref="ConversationEncoder"/>).
/// </summary>
public static class TemplateRenderer
{
    /// <summary>The empty think block that <see cref="LossScale.IgnoreEmptyThink"/> does not learn.</summary>
    public const string EmptyThink = "<think>\n\n</think>\n\n";

    private const string ThinkEnd = "</think>";

    /// <summary>
    /// Training text: prompts, answers and suffix; neighbours of equal weight are joined.
    /// Throws <see cref="ConfigException"/> TPL002 (no place for a system prompt), TPL003 (the messages are no conversation) or TPL007 (tools that
    /// the template cannot write).
    /// </summary>
    public static IReadOnlyList<TextPiece> Render(ChatTemplate template, Conversation conversation, RenderOptions options)
    {
        var (system, rounds) = ConversationRounds.Of(conversation);
        if (rounds[^1].Answers.Count == 0)
            throw new ConfigException("TPL003",
                "The conversation ends with a user message, so it has no answer to learn; add an assistant message.");

        var promptWeight = options.LossScale == LossScale.All ? 1f : 0f;
        var pieces = new PieceList();
        pieces.Add(Opening(template, SystemWithTools(template, conversation, system ?? options.System ?? template.DefaultSystem)), promptWeight);
        for (var i = template.Separator is null ? rounds.Count - 1 : 0; i < rounds.Count; i++)
        {
            var isLast = i == rounds.Count - 1;
            var answerWeight = options.LossScale == LossScale.LastRound && !isLast ? 0f : 1f;
            pieces.Add(Fill(template.Prompt, "{{QUERY}}", rounds[i].Query), promptWeight);
            foreach (var answer in rounds[i].Answers)
                AddAnswer(pieces, answer, answer.Loss is bool loss ? (loss ? 1f : 0f) : answerWeight, options.LossScale);

            if (isLast)
                pieces.Add(template.Suffix, rounds[i].Answers[^1].Loss == false ? 0f : 1f);
            else
                pieces.Add(template.Separator ?? "", promptWeight);
        }

        return pieces.ToList();
    }

    /// <summary>
    /// Text up to where the model goes on: after the last question, or inside the last message when that is an assistant's (a begun
    /// answer).
    /// Think blocks of earlier answers go by <see cref="ChatTemplate.HistoryThinking"/>. Pieces are cut as in training; weights say the
    /// same as there.
    /// Throws <see cref="ConfigException"/> TPL002, TPL003, or TPL006 when thinking cannot be switched off.
    /// </summary>
    public static IReadOnlyList<TextPiece> RenderPrompt(ChatTemplate template, Conversation conversation, PromptOptions options)
    {
        var (system, rounds) = ConversationRounds.Of(conversation);
        var pieces = new PieceList();
        pieces.Add(Opening(template, SystemWithTools(template, conversation, system ?? options.System ?? template.DefaultSystem)), 0f);
        for (var i = template.Separator is null ? rounds.Count - 1 : 0; i < rounds.Count; i++)
        {
            var isLast = i == rounds.Count - 1;
            pieces.Add(Fill(template.Prompt, "{{QUERY}}", rounds[i].Query), 0f);
            foreach (var answer in rounds[i].Answers)
                pieces.Add(isLast ? answer.Content : WithoutThinking(answer.Content, template.HistoryThinking), 1f);
            if (!isLast)
                pieces.Add(template.Separator ?? "", 0f);
        }

        if (rounds[^1].Answers.Count == 0)
            pieces.Add(BeginningOfAnswer(template, options), 0f);
        return pieces.ToList();
    }

    /// <summary>What the answer begins with at inference; shown as part of the answer.</summary>
    public static string BeginningOfAnswer(ChatTemplate template, PromptOptions options)
    {
        if (options.ResponsePrefix is not null)
            return options.ResponsePrefix;
        if (options.EnableThinking != false)
            return template.ResponsePrefix;
        if (template.NonThinkingPrefix is not null)
            return template.NonThinkingPrefix;
        return template.ResponsePrefix.Length == 0
            ? ""
            : throw new ConfigException("TPL006",
                $"enable_thinking = false has no effect on template '{template.Name}', which always thinks; "
                + "set --response_prefix '' instead.");
    }

    private static string? SystemWithTools(ChatTemplate template, Conversation conversation, string? system)
    {
        if (!conversation.HasTools) return system;
        if (template.AgentTemplate != HermesTools.Name)
            throw new ConfigException("TPL007",
                $"Tools cannot be written with agent template '{template.AgentTemplate}' of template '{template.Name}'; give --agent_template {HermesTools.Name} or remove them.");
        return conversation.Tools.Count == 0 ? system : HermesTools.System(system, conversation.Tools);
    }

    private static string Opening(ChatTemplate template, string? system)
    {
        if (string.IsNullOrEmpty(system))
            return template.Prefix;
        return template.SystemPrefix is null
            ? throw new ConfigException("TPL002",
                $"Template '{template.Name}' has no place for a system prompt, but one was given ('{Shorten(system)}'); "
                + "remove it or choose a chat template.")
            : Fill(template.SystemPrefix, "{{SYSTEM}}", system);
    }

    private static void AddAnswer(PieceList pieces, ChatMessage answer, float weight, LossScale scale)
    {
        var text = answer.Content;
        while (scale == LossScale.IgnoreEmptyThink && text.IndexOf(EmptyThink, StringComparison.Ordinal) is var at and >= 0)
        {
            pieces.Add(text[..at], weight);
            pieces.Add(EmptyThink, 0f);
            text = text[(at + EmptyThink.Length)..];
        }

        pieces.Add(text, weight);
    }

    private static string WithoutThinking(string answer, HistoryThinking rule)
    {
        var at = answer.LastIndexOf(ThinkEnd, StringComparison.Ordinal);
        if (rule == HistoryThinking.Keep || at < 0 && rule == HistoryThinking.Cut)
            return answer;
        var rest = at < 0 ? answer : answer[(at + ThinkEnd.Length)..];
        return rule == HistoryThinking.Remove ? rest.TrimStart('\n') : rest;
    }

    /// <summary>Fills one place; text that happens to contain a placeholder is not looked at again.</summary>
    private static string Fill(string part, string placeholder, string text)
    {
        var at = part.IndexOf(placeholder, StringComparison.Ordinal);
        return at < 0 ? part : string.Concat(part.AsSpan(0, at), text, part.AsSpan(at + placeholder.Length));
    }

    private static string Shorten(string text) => text.Length <= 40 ? text : text[..40] + "…";

    /// <summary>Joins neighbours of equal weight and leaves out empty ones.</summary>
    private sealed class PieceList
    {
        private readonly List<TextPiece> _done = [];
        private readonly StringBuilder _text = new();
        private float _weight;

        public void Add(string text, float weight)
        {
            if (text.Length == 0)
                return;
            if (weight != _weight)
                Close();
            _weight = weight;
            _text.Append(text);
        }

        public IReadOnlyList<TextPiece> ToList()
        {
            Close();
            return _done;
        }

        private void Close()
        {
            if (_text.Length > 0)
                _done.Add(new TextPiece(_text.ToString(), _weight));
            _text.Clear();
        }
    }
}
