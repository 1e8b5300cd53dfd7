"""Intent: what a user wants of an assistant, and what an utterance does in a conversation."""

from prefinetune.catalog.record import record, words
from prefinetune.families import Classification
from prefinetune.sources import Hub

ATIS = words("""
    atis_abbreviation atis_aircraft atis_aircraft#atis_flight#atis_flight_no atis_airfare
    atis_airfare#atis_flight atis_airfare#atis_flight_time atis_airline atis_airline#atis_flight_no
    atis_airport atis_capacity atis_cheapest atis_city atis_day_name atis_distance atis_flight
    atis_flight#atis_airfare atis_flight#atis_airline atis_flight_no atis_flight_no#atis_airline
    atis_flight_time atis_ground_fare atis_ground_service atis_ground_service#atis_ground_fare atis_meal
    atis_quantity atis_restriction
""")

CLINC = words("""
    restaurant_reviews nutrition_info account_blocked oil_change_how time weather redeem_rewards
    interest_rate gas_type accept_reservations smart_home user_name report_lost_card repeat whisper_mode
    what_are_your_hobbies order jump_start schedule_meeting meeting_schedule freeze_account what_song
    meaning_of_life restaurant_reservation traffic make_call text bill_balance improve_credit_score
    change_language no measurement_conversion timer flip_coin do_you_have_pets balance tell_joke
    last_maintenance exchange_rate uber car_rental credit_limit oos shopping_list expiration_date routing
    meal_suggestion tire_change todo_list card_declined rewards_balance change_accent vaccines
    reminder_update food_last change_ai_name bill_due who_do_you_work_for share_location
    international_visa calendar translate carry_on book_flight insurance_change todo_list_update timezone
    cancel_reservation transactions credit_score report_fraud spending_history directions spelling
    insurance what_is_your_name reminder where_are_you_from distance payday flight_status find_phone
    greeting alarm order_status confirm_reservation cook_time damaged_card reset_settings pin_change
    replacement_card_duration new_card roll_dice income taxes date who_made_you pto_request tire_pressure
    how_old_are_you rollover_401k pto_request_status how_busy application_status recipe calendar_update
    play_music yes direct_deposit credit_limit_change gas pay_bill ingredients_list lost_luggage goodbye
    what_can_i_ask_you book_hotel are_you_a_bot next_song change_speed plug_type maybe w2 oil_change_when
    thank_you shopping_list_update pto_balance order_checks travel_alert fun_fact sync_device
    schedule_maintenance apr transfer ingredient_substitution calories current_location international_fees
    calculator definition next_holiday update_playlist mpg min_payment change_user_name
    restaurant_suggestion travel_notification cancel pto_used travel_suggestion change_volume
""")

HWU64 = words("""
    alarm_query alarm_remove alarm_set audio_volume_down audio_volume_mute audio_volume_up calendar_query
    calendar_remove calendar_set cooking_recipe datetime_convert datetime_query email_addcontact
    email_query email_querycontact email_sendemail general_affirm general_commandstop general_confirm
    general_dontcare general_explain general_joke general_negate general_praise general_quirky
    general_repeat iot_cleaning iot_coffee iot_hue_lightchange iot_hue_lightdim iot_hue_lightoff
    iot_hue_lighton iot_hue_lightup iot_wemo_off iot_wemo_on lists_createoradd lists_query lists_remove
    music_likeness music_query music_settings news_query play_audiobook play_game play_music play_podcasts
    play_radio qa_currency qa_definition qa_factoid qa_maths qa_stock recommendation_events
    recommendation_locations recommendation_movies social_post social_query takeaway_order takeaway_query
    transport_query transport_taxi transport_ticket transport_traffic weather_query
""")

SNIPS = words("""
    AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent
""")

DIALOGUE_ACTS = words("""
    % ^2 ^g ^h ^q aa aap_am ad ar arp_nd b b^m ba bd bf bh bk br fa fc fo_o_fw_"_by_bc fp ft h na ng nn no
    ny oo_co_cc qh qo qrr qw qw^d qy qy^d sd sv t1 t3
""")

# fmt: off
TASKS = [
    record("atis/intent", Hub(None), Classification("text", labels=ATIS),
           "intent", cite="Hemphill et al. 1990, H90-1021",
           note="a few intents occur in evaluation splits only; form of its own (from tuetschek/atis)"),
    record("clinc_oos/plus", Hub("clinc/clinc_oos", "plus"), Classification("text", label="intent", labels=CLINC),
           "intent", license="CC BY 3.0", cite="Larson et al. 2019, arXiv 1909.02027"),
    record("hwu64", Hub(None), Classification("text", labels=HWU64),
           "intent", license="CC BY 4.0", cite="Liu et al. 2019, arXiv 1903.05566"),
    record("snips/intent", Hub(None), Classification("text", labels=SNIPS),
           "intent", cite="Coucke et al. 2018, arXiv 1805.10190"),
    record("swda", Hub(None), Classification("text", labels=DIALOGUE_ACTS),
           "dialogue-act dialogue", license="GPL-3.0 (source repo)", cite="Stolcke et al. 2000, arXiv cs/0006023",
           note="utterances without context; form of its own (from cgpotts/swda)"),
]
